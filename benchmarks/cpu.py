"""Side by side on this CPU: max_mistral, MAX's own Llama, llama.cpp and more.

    make bench-cpu                       # or, to choose:
    python -m benchmarks.cpu --shapes 1.1B --encodings bf16 q8_0 --rounds 3

The same seeded random weights for all, and the same two CPUs. The engines' processes
are loaded side by side and take turns of a few seconds, all others stopped: every
round runs each measure on every engine, in rotated order, after a look at what the CPU
does at most (``limits.py``). A turn before the first round is not counted. The table
has the medians, and the median of the rounds' ratios to llama.cpp. "end_to_end" is
decode as the user of ``max generate`` and of llama-cpp-python gets it, each in a
process of its own, without prompt lookup, three times a round.
"exact" is max_mistral with ``MAX_MISTRAL_KERNELS=exact``, where that differs. Beside
bfloat16, MAX's own Llama runs through ``max generate``, in float32, which is all that
it has for safetensors on a CPU.
ik_llama.cpp is there once ``scripts/build_ik_llama.sh`` has built it, with and without
``-rtr``, which interleaves its weights at load; torch where it is installed.
``--kv-8-bits`` adds max_mistral and llama.cpp with keys and values in 8 bits. 7B has 4
bits only. ``--json`` adds to a file after each round; every row says which day, commit
and packages made it. An engine that fails end to end is left out there, and the rest
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import limits, models
from benchmarks.engine import Stopped
from benchmarks.limits import Most, Peaks
from benchmarks.machine import cpu_name, take_two_cpus
from benchmarks.measure import DECODES, PREFILLS, requests_of
from benchmarks.report import MADE, Results, table
from benchmarks.rounds import in_process, rotated, run_rounds
from max_mistral import kernels
from max_mistral.command.program import max_program
from workbench.record import origin, place, write

IK = "ik_llama.cpp"
KV_8_BITS = "KV cache in 8 bits"
# What the versions of are kept, where it is installed and used.
PACKAGES = ("max", "llama-cpp-python")
# End to end, a round: the engines are minutes apart there, not seconds, and memory is
# faster for one than for the next.
TURNS = 3
Keep = Callable[[Results, Most], None]


def max_generate(
    folder: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Runs ``max generate`` and returns the rate that it prints."""
    prompt = "".join(chr(97 + i % 26) for i in range(500))
    # Random weights repeat themselves: drafts of prompt lookup would flatter us.
    variables = {"PYTHONWARNINGS": "ignore", "MAX_MISTRAL_LOOKUP": "off"}
    variables |= environment or {}
    done = subprocess.run(
        [max_program() or "max", "generate", "--model", str(folder)]
        + ["--devices", "cpu", "--max-length", "1024", "--max-new-tokens", "100"]
        + ["--temperature", "0", "--prompt", prompt, *flags],
        env=dict(os.environ) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"max generate failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = re.findall(r"Eval throughput \(token-generation\): ([\d.]+)", done.stdout)
    if not found:
        sys.exit(f"max generate printed no rate:\n{done.stdout[-3000:]}")
    return {"end_to_end": float(found[-1])}


@dataclass
class Measured:
    """What measures an engine."""

    user: Callable[[], dict[str, float]] | None
    """Runs it end to end."""
    worker: Callable[[], Stopped] | None = None
    """Starts a process for the measures of the model alone."""


def engines(
    folder: Path, encoding: str, ik_llama: Path, kv_8_bits: bool = False
) -> dict[str, Measured]:
    """Returns what measures each engine on a model in an encoding."""
    gguf = models.weights(folder, encoding)
    ours = None if encoding == "bf16" else gguf.resolve()
    float32 = ["--quantization-encoding", "float32"]
    flags = ["--custom-architectures", "max_mistral", *float32]
    flags += ["--weight-path", str(ours)] if ours else []
    chosen = {
        "max_mistral": Measured(
            partial(max_generate, folder, *flags),
            partial(Stopped, "max_mistral", folder, ours),
        ),
        "llama.cpp": Measured(
            partial(in_process, "llama.cpp-user", folder, gguf),
            partial(Stopped, "llama.cpp", folder, gguf),
        ),
    }
    if kv_8_bits:
        mode = {"KV_BITS": "8"}
        for name, engine, path in (
            (KV_8_BITS, "max_mistral", ours),
            (f"llama.cpp, {KV_8_BITS}", "llama.cpp", gguf),
        ):
            start = partial(Stopped, engine, folder, path, environment=mode)
            chosen[name] = Measured(None, start)
    if ik_llama.exists():
        command = [str(ik_llama)]
        for name, mode in {IK: {}, f"{IK} -rtr": {"REPACK": "1"}}.items():
            ik = partial(Stopped, name, folder, gguf, environment=mode, command=command)
            chosen[name] = Measured(None, ik)
    if encoding == "bf16":
        if kernels.has_bfloat16():
            mode = {"MAX_MISTRAL_KERNELS": "exact"}
            chosen["exact"] = Measured(
                partial(max_generate, folder, *flags, environment=mode),
                partial(Stopped, "max_mistral", folder, environment=mode),
            )
        if find_spec("torch") is not None:
            chosen["torch"] = Measured(None, partial(Stopped, "torch", folder))
        stock = models.stock(folder)
        chosen["MAX float32"] = Measured(partial(max_generate, stock, *float32))
    return chosen


def run(
    chosen: Mapping[str, Measured],
    rounds: int,
    measures: Sequence[str],
    peaks: Callable[[], Peaks],
    keep: Keep,
) -> tuple[Results, list[str]]:
    """Measures the engines, by themselves and then end to end.

    Args:
        chosen: The engines.
        rounds: How many.
        measures: Of the model alone.
        peaks: Measures what the CPU does at most.
        keep: Is given what there is, and the peaks, after each round.

    Returns:
        What each engine did, a round each, and those that failed end to end.
    """
    results: Results = {name: defaultdict(list) for name in chosen}
    starts = {name: m.worker for name, m in chosen.items() if m.worker is not None}
    for start in starts.values():
        # The first compiles, which takes memory that is not the model's.
        start().finish()
    workers = {}
    most: Most = defaultdict(list)
    try:
        for name, start in starts.items():
            workers[name] = start()
        first = measures[0]
        for worker in workers.values():
            # Not counted: it reads from the disk again what loading the others has
            # pushed out of memory.
            worker.rate(first, *requests_of(first))
        for turn in range(rounds):
            for measure in measures:
                most[measure].append(peaks())
                numbers = requests_of(measure)
                runs = {
                    n: partial(w.rate, measure, *numbers) for n, w in workers.items()
                }
                for name, value in rotated(runs, turn):
                    results[name][measure].append(value)
            keep(results, most)
        for name, worker in workers.items():
            for key, value in worker.finish().items():
                results[name][key] = [value]
    finally:
        for worker in workers.values():
            worker.kill()
    users = {name: m.user for name, m in chosen.items() if m.user is not None}

    def together(ends: Results) -> Results:
        return {name: found | ends.get(name, {}) for name, found in results.items()}

    turns = TURNS * rounds
    ends, failed = run_rounds(turns, users, lambda found: keep(together(found), most))
    return together(ends), failed


def earlier(path: Path | None) -> dict[str, Any]:
    """Returns the report to add to; exits if it is none, or another processor's."""
    if path is None or not path.exists():
        return {"cpu": cpu_name()}
    try:
        report = json.loads(path.read_text())
        cpu = report["cpu"]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{path} is no report of benchmarks.cpu: give another file.")
    if cpu != cpu_name():
        sys.exit(
            f"{path} has results of {cpu}, and this is {cpu_name()}: give another."
        )
    return report


def made(chosen: Mapping[str, Measured], cpus: list[int], ik_llama: Path) -> Any:
    """Returns what makes a row's results."""
    found = origin(*PACKAGES, *(["torch"] if "torch" in chosen else []))
    commit = ik_llama.with_name("commit")
    if IK in chosen and commit.exists():
        found[IK] = commit.read_text().strip()
    return found | {"cpus": cpus}


def summary(row: Mapping[str, Any], encoding: str) -> str:
    """Returns what the CPU did at most, and what part of it each measure took."""
    most = limits.medians(p for measured in row["peaks"].values() for p in measured)
    said = ", ".join(f"{kind} {value / 1e9:.4g}" for kind, value in most.items())
    said = f"the CPU's most, in 1e9 a second: {said}"
    parts = [f"{k} {v:.0%}" for k, v in limits.shares(row, encoding).items()]
    return f"{said}; of that {', '.join(parts)}" if parts else said


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", choices=models.SHAPES, default=[*models.SHAPES]
    )
    parser.add_argument(
        "--encodings",
        nargs="+",
        choices=models.ENCODINGS,
        default=["bf16", "q8_0", "q4_0", "q4_k_m"],
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=[*PREFILLS, *DECODES],
        default=[*PREFILLS, *DECODES],
        help="beside end_to_end; those of 4,096 tokens take most of an hour with 7B",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--ik-llama",
        type=Path,
        default=Path("build/ik_llama/worker"),
        help="what scripts/build_ik_llama.sh built; left out where there is none",
    )
    parser.add_argument(
        "--kv-8-bits",
        action="store_true",
        help="also with keys and values in 8 bits",
    )
    parser.add_argument("--json", type=place, help="where to add the results")
    arguments = parser.parse_args()
    cpus = take_two_cpus()
    report = earlier(arguments.json)
    peaks = partial(limits.peaks, limits.built(arguments.folder))
    without = []
    for shape in arguments.shapes:
        folder = models.make(shape, arguments.folder / shape)
        for encoding in arguments.encodings:
            if shape == "7B" and encoding not in ("q4_0", "q4_k_m"):
                print(f"\n7B has 4 bits only: {encoding} left out")
                continue
            row = f"{shape} {encoding}"
            chosen = engines(folder, encoding, arguments.ik_llama, arguments.kv_8_bits)
            first = {MADE: made(chosen, cpus, arguments.ik_llama)}
            first["work"] = limits.work(folder, models.weights(folder, encoding))

            def keep(results: Results, most: Most) -> None:
                report[row] = first | {"peaks": most} | results
                write(arguments.json, report)

            results, failed = run(
                chosen, arguments.rounds, arguments.measures, peaks, keep
            )
            keep(results, report[row]["peaks"])
            print(f"\n{row}, tokens/s; {summary(report[row], encoding)}")
            print(table(results), flush=True)
            without += [f"{name} on {row}" for name in failed]
    if without:
        sys.exit(f"Failed end to end: {', '.join(without)}.")


if __name__ == "__main__":
    main()
