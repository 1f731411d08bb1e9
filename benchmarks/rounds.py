"""Rounds, in which engines take turns, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from benchmarks.report import Results

T = TypeVar("T")


def in_process(
    engine: str, *arguments: object, module: str = "benchmarks.worker"
) -> dict[str, float]:
    """Runs a module on an engine in a process of its own; returns its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, engine, *map(str, arguments)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{engine} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


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
