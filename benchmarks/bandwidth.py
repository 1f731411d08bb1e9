"""How near decode comes to the speed of memory, whatever the minute.

    python -m benchmarks.bandwidth --shapes 1.1B 7B --encodings q4_k_m

A decode step reads all weights once. A shared machine's memory may be half as fast a
second later, so a program that only reads (``peak.cpp``, on the same two CPUs: the
first 512 MB of the GGUF file, which are in memory) takes turns with max_mistral and
llama.cpp, which decode three tokens in each; who waits stands still. An engine's part
of a turn is the bytes that its steps read a second, Python's work between them
included, divided by the mean of the reads just before and after.
Prints each model's medians, and the quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import limits, models
from benchmarks.engine import Stopped
from benchmarks.machine import cpu_name, take_two_cpus
from benchmarks.report import MADE
from workbench.record import origin, place, write

ENGINES = ("max_mistral", "llama.cpp")
# Reads just before or after a turn, of which the median counts.
READS = 3


class Reader:
    """``peak reads``: reads a file in memory when asked, and otherwise waits."""

    def __init__(self, program: Path, file: Path) -> None:
        self._process = subprocess.Popen(
            [program, "reads", file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def read(self) -> float:
        """Returns bytes a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rates = []
        for _ in range(READS):
            with suppress(BrokenPipeError):
                self._process.stdin.write("\n")
            line = self._process.stdout.readline()
            if not line:
                sys.exit(f"peak reads failed (exit status {self._process.wait()}).")
            rates.append(float(line))
        return statistics.median(rates)

    def end(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.communicate()


def measure(folder: Path, gguf: Path, turns: int, reader: Reader) -> dict[str, Any]:
    """Returns what was measured of a model.

    Returns:
        ``step``: bytes of weights that a step reads; and by engine, a number a turn:
        ``steps``, decode steps a second, and ``read``, bytes a second around them.
    """
    reader.read()
    # What is compiled and packed now is in the cache when both are loaded.
    Stopped("max_mistral", folder, gguf).finish()
    workers: dict[str, Stopped] = {}
    row: dict[str, Any] = {"step": limits.work(folder, gguf)["weights"]}
    try:
        for name in ENGINES:
            workers[name] = Stopped(name, folder, gguf)
            row[name] = {"steps": [], "read": []}
        # The first turn does not count: the prompt, and what the disk gives again.
        for turn in range(turns + 1):
            before = reader.read()
            for name in ENGINES if turn % 2 else reversed(ENGINES):
                steps = workers[name].rate("steps")
                after = reader.read()
                if turn:
                    row[name]["steps"].append(steps)
                    row[name]["read"].append((before + after) / 2)
                before = after
    finally:
        for worker in workers.values():
            worker.kill()
    return row


def parts(row: Mapping[str, Any], engine: str) -> list[float]:
    """Returns, turn by turn, which part of memory's speed an engine took."""
    turns = zip(row[engine]["steps"], row[engine]["read"], strict=True)
    return [row["step"] * steps / read for steps, read in turns]


def table(report: Mapping[str, Any]) -> str:
    """Returns the report in Markdown."""
    lines = ["| model | memory, 1e9 bytes/s | " + " | ".join(ENGINES) + " |"]
    lines.append("|---" * (2 + len(ENGINES)) + "|")
    for name, row in report.items():
        if not isinstance(row, Mapping) or "step" not in row:
            continue
        reads = [read / 1e9 for engine in ENGINES for read in row[engine]["read"]]
        cells = [name, _quartiles(reads, ".0f")]
        cells += [_quartiles(parts(row, engine), ".0%") for engine in ENGINES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quartiles(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", choices=models.SHAPES, default=["1.1B", "7B"]
    )
    parser.add_argument(
        # Of bf16 llama.cpp reads more bytes than max_mistral does.
        "--encodings",
        nargs="+",
        choices=models.ENCODINGS[1:],
        default=["q4_k_m"],
    )
    parser.add_argument("--turns", type=int, default=60, help="turns, two or more")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    if arguments.turns < 2:
        parser.error(f"--turns {arguments.turns} has no quartiles: give 2 or more")
    made = origin("max", "llama-cpp-python") | {"cpus": take_two_cpus()}
    report: dict[str, Any] = {"cpu": cpu_name(), MADE: made}
    program = limits.built(arguments.folder)
    for shape in arguments.shapes:
        folder = models.make(shape, arguments.folder / shape)
        for encoding in arguments.encodings:
            gguf = models.weights(folder, encoding).resolve()
            reader = Reader(program, gguf)
            try:
                row = measure(folder, gguf, arguments.turns, reader)
            finally:
                reader.end()
            report[f"{shape} {encoding}"] = row
            write(arguments.json, report)
    print(table(report))


if __name__ == "__main__":
    main()
