"""Side by side on this CPU: max_mistral, MAX's own Llama, llama.cpp and more.

    make bench-cpu                       # or, to choose:
    python -m benchmarks.cpu --shapes 1.1B --encodings bf16 q8_0 --rounds 3

The same seeded random weights for all. The engines' processes are loaded side
by side and take turns of a few seconds, all others stopped: every round runs
each measure on every engine, in rotated order, beside a probe of the memory's
read bandwidth. The table has the medians, and the median of the rounds' ratios
to llama.cpp. "end_to_end" is decode as the user of ``max generate`` and of
llama-cpp-python gets it, each in a process of its own, without prompt lookup.
"exact" is max_mistral with ``MAX_MISTRAL_KERNELS=exact``, where that differs. MAX's
own Llama runs through ``max generate``, in float32, which is what it has on a CPU.
ik_llama.cpp is there once ``scripts/build_ik_llama.sh`` has built it, with and without
``-rtr``, which interleaves its weights at load; torch where it is installed. 7B has 4
bits only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import models
from benchmarks.engine import Stopped
from benchmarks.measure import DECODES, requests_of
from benchmarks.report import Results, table
from max_mistral import kernels
from max_mistral.command.program import max_program

T = TypeVar("T")
IK = "ik_llama.cpp"


def bandwidth() -> float:
    """Returns the bytes a second that two threads read from memory."""
    parts = [np.ones(2**25) for _ in range(2)]

    def read() -> float:
        threads = [threading.Thread(target=part.sum) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(part.nbytes for part in parts) / (time.perf_counter() - start)

    return statistics.median(read() for _ in range(7))


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


def run_round(
    turn: int, engines: Mapping[str, Callable[[], dict[str, float]]], results: Results
) -> None:
    """Runs every engine once, in an order rotated by ``turn``; adds to ``results``."""
    for engine, values in rotated(engines, turn):
        measured = results.setdefault(engine, defaultdict(list))
        for name, value in values.items():
            measured[name].append(value)


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
    return {"end_to_end": float(found[-1])}


@dataclass
class Measured:
    """What measures an engine."""

    user: Callable[[], dict[str, float]] | None
    """Runs it end to end."""
    worker: Callable[[], Stopped] | None = None
    """Starts a process for the measures of the model alone."""


def engines(folder: Path, encoding: str, ik_llama: Path) -> dict[str, Measured]:
    """Returns what measures each engine on a model in an encoding."""
    gguf = folder / "model-bf16.gguf"
    if encoding != "bf16":
        gguf = models.quantize(folder, encoding)
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
    chosen: Mapping[str, Measured], rounds: int, measures: Iterable[str]
) -> tuple[Results, list[float]]:
    """Returns what each engine did, and what the probe read, a round each."""
    results: Results = {name: defaultdict(list) for name in chosen}
    starts = {name: m.worker for name, m in chosen.items() if m.worker is not None}
    for start in starts.values():
        # The first compiles, which takes memory that is not the model's.
        start().finish()
    workers = {}
    speeds = []
    try:
        for name, start in starts.items():
            workers[name] = start()
        for turn in range(rounds):
            speeds.append(bandwidth())
            for measure in measures:
                numbers = requests_of(measure)
                runs = {
                    n: partial(w.rate, measure, *numbers) for n, w in workers.items()
                }
                for name, value in rotated(runs, turn):
                    results[name][measure].append(value)
        for name, worker in workers.items():
            for key, value in worker.finish().items():
                results[name][key] = [value]
    finally:
        for worker in workers.values():
            worker.kill()
    users = {name: m.user for name, m in chosen.items() if m.user is not None}
    for turn in range(rounds):
        run_round(turn, users, results)
    return results, speeds


def cpu_name() -> str:
    """Returns the processor's name, what of it is known, and the cores seen."""
    known = dict(re.findall(r"(.+?)\s*: (.*)", Path("/proc/cpuinfo").read_text()))
    name = known.get("model name", platform.processor())
    if "cpu family" in known:
        name += f" (family {known['cpu family']}, model {known['model']})"
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["300M", "1.1B", "7B"])
    parser.add_argument(
        "--encodings", nargs="+", default=["bf16", "q8_0", "q4_0", "q4_k_m"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--measures",
        nargs="+",
        default=["prefill", *DECODES],
        help="beside end_to_end; decode_deep of 7B alone takes most of an hour",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--ik-llama",
        type=Path,
        default=Path("build/ik_llama/worker"),
        help="what scripts/build_ik_llama.sh built; left out where there is none",
    )
    parser.add_argument("--json", type=Path, help="where to add the results")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
        if report["cpu"] != cpu_name():
            sys.exit(f"{arguments.json} has results of {report['cpu']}.")
    report |= {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d")}
    for shape in arguments.shapes:
        folder = models.make(shape, arguments.folder / shape)
        for encoding in arguments.encodings:
            if shape == "7B" and encoding not in ("q4_0", "q4_k_m"):
                print(f"\n7B has 4 bits only: {encoding} left out")
                continue
            chosen = engines(folder, encoding, arguments.ik_llama)
            results, speeds = run(chosen, arguments.rounds, arguments.measures)
            speed = statistics.median(speeds)
            size = results["llama.cpp"]["weight_bytes"][0]
            reads = statistics.median(results["max_mistral"]["decode"]) * size
            print(
                f"\n{shape} {encoding}, tokens/s; decode reads {reads / 1e9:.1f} GB/s "
                f"of weights, the probe read {speed / 1e9:.1f}"
            )
            print(table(results), flush=True)
            report[f"{shape} {encoding}"] = {"bandwidth": speeds, **results}
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
