"""From a command to the first token: ``max generate``, ours and MAX's own Llama.

    python -m benchmarks.start --json build/bench/start.json
    python -m benchmarks.start --shape 300M --encodings bf16 q4_k_m

The same random weights for both, started in turns once their graphs are in MAX's
compile cache: seconds until one token is printed, medians. MAX's own Llama runs in
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
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.cpu import cpu_name, rotated
from max_mistral.command.program import max_program

FLAGS = ["--devices", "cpu", "--max-length", "1024", "--max-new-tokens", "1"]
FLAGS += ["--temperature", "0", "--prompt", "Hello"]
# What is timed: a module and a name in it.
PARTS = {
    "the model's graph": ("max_mistral.model", "MistralModel.load_model"),
    "weights read, checked, packed": (
        "max_mistral.model",
        "MistralModel._load_state_dict",
    ),
    "log-probabilities' graph": ("max.engine", "InferenceSession.load"),
    "the sampler's graphs": (
        "max.pipelines.lib.pipeline_variants.text_generation",
        "load_sampler_graphs",
    ),
    "first token": ("max.pipelines.lib.generate", "GenerateIterator.step"),
}
# What MAX's own Llama has on a CPU, by what we call it.
OWN = {"q4_0": "q4_0", "q4_k_m": "q4_k"}
INSIDE = {"weights read, checked, packed": "the model's graph"}
IMPORTS, REST = "Python, imports of MAX and ours", "the rest"


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
    return run([max_program() or "max", "generate", *flags, *FLAGS])[0]


def run(command: list[str]) -> tuple[float, str]:
    """Returns the seconds that a command takes, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=dict(os.environ) | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.perf_counter() - began, done.stdout


def parts(flags: list[str]) -> dict[str, float]:
    """Returns the seconds of each part of ours, from a process of its own."""
    module = [sys.executable, "-m", "benchmarks.start", "--parts"]
    total, printed = run([*module, "generate", *flags, *FLAGS])
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    outer = sum(v for k, v in found.items() if k not in INSIDE)
    return found | {REST: total - outer, "in all": total}


def time_parts(arguments: list[str]) -> None:
    """Runs ``max`` in this process with clocks around its parts; prints them."""
    # The process's own start, as the system has it: Python's is a part too.
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    born = ticks / os.sysconf("SC_CLK_TCK")
    max_main = import_module("max._entrypoints.pipelines").main
    import_module("max_mistral.arch")

    seconds: dict[str, float] = defaultdict(float)
    seconds[IMPORTS] = time.clock_gettime(time.CLOCK_BOOTTIME) - born

    def timed(label: str, function: Any) -> Any:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[label] += time.perf_counter() - began

        return run

    for label, (module, name) in PARTS.items():
        *owners, last = name.split(".")
        owner: Any = import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, last, timed(label, getattr(owner, last)))
    sys.argv = ["max", *arguments]
    try:
        max_main()
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(seconds))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=models.SHAPES, default="1.1B")
    parser.add_argument("--encodings", nargs="+", default=["bf16", "q4_0"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write what was measured here")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d")}
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
        print(f"\n{arguments.shape} {encoding}, seconds to the first token")
        for name, values in seconds.items():
            print(f"{name:34}{statistics.median(values):6.1f}")
        print("\nwhere max_mistral's go")
        for name in (IMPORTS, *PARTS, REST, "in all"):
            label = "  " * (name in INSIDE) + name
            print(f"{label:34}{statistics.median(where[name]):6.1f}", flush=True)
        report[f"{arguments.shape} {encoding}"] = {"start": seconds, "parts": where}
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--parts"]:
        time_parts(sys.argv[2:])
    else:
        main()
