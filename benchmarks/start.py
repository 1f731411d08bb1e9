"""Seconds of ``max generate`` for one token: ours and MAX's own Llama.

    python -m benchmarks.start --json build/bench/start.json
    python -m benchmarks.start --shape 300M --encodings bf16 q4_k_m

The same random weights for both, started in turns once their graphs are in MAX's
compile cache: seconds from the command to its end, medians. MAX's own Llama runs in
float32 from bfloat16's weights, and in the encodings of GGUF that it has on a CPU
from the same file. Below, where the time of ours goes; what is indented is part of
what stands above it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.machine import cpu_name
from benchmarks.report import MADE
from benchmarks.rounds import rotated
from benchmarks.start_parts import IMPORTS, PARTS
from workbench.record import origin, place, write

# MAX imports torch where it is installed, for seconds. A user's environment has none.
MAX = """
import sys
sys.modules["torch"] = None
from max._entrypoints.pipelines import main
main()
"""
FLAGS = ["--devices", "cpu", "--max-length", "1024", "--max-new-tokens", "1"]
FLAGS += ["--temperature", "0", "--prompt", "Hello"]
# What MAX's own Llama has on a CPU, by what we call it.
OWN = {"q4_0": "q4_0", "q4_k_m": "q4_k"}
INSIDE = {"weights read, checked, packed": "the model's graph"}
REST = "the rest"
SECONDS = "seconds of max generate for one token"


def commands(shape: str, encoding: str) -> dict[str, list[str]]:
    """Returns each engine's flags for ``max generate``."""
    folder = models.make(shape, Path("build/bench") / shape)
    ours = ["--custom-architectures", "max_mistral", "--model", str(folder)]
    if encoding == "bf16":
        own = ["--model", str(models.stock(folder))]
        float32 = ["--quantization-encoding", "float32"]
        return {"max_mistral": ours + float32, "MAX's own Llama": own + float32}
    file = str(models.quantize(folder, encoding).resolve())
    found = {"max_mistral": [*ours, "--weight-path", file]}
    if encoding in OWN:
        own = ["--model", str(models.stock(folder)), "--weight-path", file]
        found["MAX's own Llama"] = [*own, "--quantization-encoding", OWN[encoding]]
    return found


def start(flags: list[str]) -> float:
    """Returns the seconds that ``max generate`` takes for one token."""
    return run([sys.executable, "-c", MAX, "generate", *flags, *FLAGS])[0]


def run(command: list[str]) -> tuple[float, str]:
    """Returns the seconds that a command takes, and what it prints."""
    variables = dict(os.environ) | {"PYTHONWARNINGS": "ignore"}
    # Python compiles its modules at each start where it may not keep them.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.perf_counter() - began, done.stdout


def parts(flags: list[str]) -> dict[str, float]:
    """Returns the seconds of each part of ours, from a process of its own."""
    module = [sys.executable, "-m", "benchmarks.start_parts"]
    total, printed = run([*module, "generate", *flags, *FLAGS])
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    outer = sum(v for k, v in found.items() if k not in INSIDE)
    return found | {REST: total - outer, "in all": total}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=models.SHAPES, default="1.1B")
    parser.add_argument(
        "--encodings", nargs="+", choices=models.ENCODINGS, default=["bf16", "q4_0"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=place, help="write what was measured here")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"cpu": cpu_name(), MADE: origin("max")}
    print(report["cpu"])
    for encoding in arguments.encodings:
        chosen = commands(arguments.shape, encoding)
        for flags in chosen.values():
            start(flags)  # compiles
        seconds: dict[str, list[float]] = defaultdict(list)
        where: dict[str, list[float]] = defaultdict(list)
        for turn in range(arguments.rounds):
            starts = {name: partial(start, flags) for name, flags in chosen.items()}
            for name, value in rotated(starts, turn):
                seconds[name].append(value)
            for name, value in parts(chosen["max_mistral"]).items():
                where[name].append(value)
        print(f"\n{arguments.shape} {encoding}, {SECONDS}")
        for name, values in seconds.items():
            print(f"{name:34}{statistics.median(values):6.1f}")
        print("\nwhere max_mistral's go")
        for name in (IMPORTS, *PARTS, REST, "in all"):
            label = "  " * (name in INSIDE) + name
            print(f"{label:34}{statistics.median(where[name]):6.1f}", flush=True)
        report[f"{arguments.shape} {encoding}"] = {SECONDS: seconds, "parts": where}
        write(arguments.json, report)


if __name__ == "__main__":
    main()
