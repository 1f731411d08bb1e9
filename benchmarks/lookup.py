"""Prompt lookup on this CPU: tokens a second with it and without.

    python -m benchmarks.lookup
    python -m benchmarks.lookup --models smollm2 --same 200

Three kinds of request: a function written again with a name changed, an answer
with sentences of a document, an open chat; 1, 2, 4 and 8 at a time. Each round
answers the same requests both ways, in turns; the table has the median of the
rounds' ratios, and how many drafted tokens were right. ``--json`` keeps every round.

- ``smollm2``: SmolLM2-135M-Instruct's own answers, greedy, beside llama.cpp's
  prompt lookup, which takes one request. The two take turns in each round, as in
  ``benchmarks/cpu.py``.
- ``1.1B``: TinyLlama's shape with random weights in Q4_K_M. Its tokens are
  replaced by those of the answers in ``workbench/lookup_texts.py``, and for the
  chat by what SmolLM2 said: the work of a good model.

``--same`` counts greedy answers that are equal with lookup and without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.engine import Stopped
from benchmarks.machine import cpu_name, take_two_cpus
from benchmarks.report import MADE
from benchmarks.rounds import rotated
from workbench.demo import DEMO, GGUF, prepare_demo
from workbench.lookup_texts import KINDS
from workbench.record import origin, place, write

AT_A_TIME = (1, 2, 4, 8)
LLAMA = "llama.cpp"
Rates = Mapping[str, float]


def start(engine: str, folder: Path = DEMO, gguf: Path = GGUF) -> Stopped:
    """Starts an engine's process."""
    command = [sys.executable, "-m", "benchmarks.lookup_worker", engine]
    return Stopped(engine, folder, gguf.resolve(), command=command)


def figures(rounds: list[Rates]) -> dict[str, Any]:
    """Returns a row: the medians of its rounds, the drafts of all, and the rounds."""
    found: dict[str, Any] = {
        way: statistics.median(each[way] for each in rounds)
        for way in ("without", "with")
    }
    found["ratio"] = statistics.median(
        each["with"] / each["without"] for each in rounds
    )
    if "drafted" in rounds[0]:  # of llama.cpp's nobody tells
        for name in ("drafted", "right"):
            found[name] = sum(each[name] for each in rounds)
    return found | {"rounds": rounds}


def compare(
    workers: Mapping[str, Stopped], kind: str, count: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Returns each engine's row of ``count`` requests at a time."""
    found = defaultdict(list)
    for turn in range(rounds):
        runs = {n: partial(w.ask, kind, count, turn) for n, w in workers.items()}
        for name, values in rotated(runs, turn):
            found[name].append(values)
    return {name: figures(found[name]) for name in workers}


def table(
    workers: Mapping[str, Stopped],
    rounds: int,
    keep: Callable[[str, str, int, dict[str, Any]], None],
) -> None:
    """Prints the figures of engines that take turns, and keeps them as they come."""
    print(f"\n{' and '.join(workers)}: tokens a second")
    print(
        f"{'':20}{'requests':>9}{'without':>9}{'with':>9}{'ratio':>7}   right/drafted"
    )
    for kind in KINDS:
        for count in AT_A_TIME:
            able = {n: w for n, w in workers.items() if count == 1 or n != LLAMA}
            for name, found in compare(able, kind, count, rounds).items():
                drafts = f"{found['right']}/{found['drafted']}" if name != LLAMA else ""
                print(
                    f"{f'{kind}, {name}':20}{count:9}{found['without']:9.1f}"
                    f"{found['with']:9.1f}{found['ratio']:7.2f}   {drafts}",
                    flush=True,
                )
                keep(name, kind, count, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ("smollm2", "1.1B")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--same", type=int, default=0, metavar="COUNT")
    parser.add_argument("--no-llama-cpp", action="store_true")
    parser.add_argument("--build", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    made = origin("max", "llama-cpp-python") | {"cpus": take_two_cpus()}
    report: dict[str, Any] = {"machine": cpu_name(), MADE: made}
    workers: dict[str, Stopped] = {}

    def keep(name: str, kind: str, count: int, found: dict[str, Any]) -> None:
        report.setdefault(name, {}).setdefault(kind, {})[count] = found
        write(arguments.json, report)

    prepare_demo()
    try:
        if "smollm2" in arguments.models or arguments.same:
            workers["smollm2"] = start("smollm2")
        if "smollm2" in arguments.models:
            if not arguments.no_llama_cpp:
                workers[LLAMA] = start(LLAMA)
            table(workers, arguments.rounds, keep)
        if arguments.same:
            equal = workers["smollm2"].ask("same", arguments.same, 0)
            report["same"] = [equal, arguments.same]
            write(arguments.json, report)
            print(f"\nequal with lookup and without: {equal} of {arguments.same}")
        while workers:
            workers.popitem()[1].finish()
        if "1.1B" in arguments.models:
            folder = models.make("1.1B", arguments.build / "1.1B")
            workers["1.1B"] = start("1.1B", folder, models.quantize(folder, "q4_k_m"))
            table(workers, arguments.rounds, keep)
    finally:
        for worker in workers.values():
            worker.kill()


if __name__ == "__main__":
    main()
