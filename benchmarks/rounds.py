"""Rounds, in which engines take turns, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from benchmarks.report import Results

T = TypeVar("T")


def in_process(
    engine: str,
    *arguments: object,
    module: str = "benchmarks.worker",
    shown: bool = False,
) -> dict[str, Any]:
    """Runs a module on an engine in a process of its own; returns its last line.

    Args:
        engine: Its first argument.
        *arguments: The others.
        module: Which.
        shown: Whether what it says on its standard error is printed as it comes, so
            that it is there if this process is ended before that one.
    """
    said = []
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(
            [sys.executable, "-m", module, engine, *map(str, arguments)],
            env=dict(os.environ),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    said.append(line)
                    if shown:
                        print(line, end="", file=sys.stderr, flush=True)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            sys.exit(f"{engine} failed:\n{''.join(said)[-3000:]}")
        output.seek(0)
        found: dict[str, Any] = json.loads(output.read().splitlines()[-1])
        return found


def rotated(runs: Mapping[str, Callable[[], T]], turn: int) -> Iterator[tuple[str, T]]:
    """Runs each, in an order rotated by ``turn``; yields its name and result."""
    names = list(runs)
    at = turn % len(names)
    for name in names[at:] + names[:at]:
        yield name, runs[name]()


def run_rounds(
    rounds: int,
    engines: Mapping[str, Callable[[], dict[str, float]]],
    keep: Callable[[Results], None],
) -> tuple[Results, list[str]]:
    """Runs every engine once a round, in rotated order.

    One that fails, by ``SystemExit``, is left out with all that it had, for its
    rounds would not be those of the others, which go on.

    Args:
        rounds: How many.
        engines: What runs each and returns its figures.
        keep: Is given what there is, after each round.

    Returns:
        The figures of each, and the engines that failed.
    """
    found: Results = {name: defaultdict(list) for name in engines}
    failed = []

    def tried(name: str) -> dict[str, float] | None:
        try:
            return engines[name]()
        except SystemExit as end:
            print(f"{end}\n{name} is left out from here on.", flush=True)
            return None

    for turn in range(rounds):
        left = {name: partial(tried, name) for name in found}
        for name, values in rotated(left, turn):
            if values is None:
                failed.append(name)
                del found[name]
                continue
            for measure, value in values.items():
                found[name][measure].append(value)
        if not found:
            break
        keep(found)
    return found, failed
