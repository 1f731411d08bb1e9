"""Side by side on this CPU: max_mistral, MAX's own Llama, llama.cpp, torch.

    make bench-cpu                       # or, to choose:
    python -m benchmarks.cpu --shapes 1.1B --encodings bf16 q8_0 --rounds 3

The same seeded random weights for all. Every round runs every engine once, in
rotated order, each in a process of its own, beside a probe of the memory's read
bandwidth; the table has the medians, and the median of the rounds' ratios to
llama.cpp. "end_to_end" is decode as the user of ``max generate`` and of
llama-cpp-python gets it. MAX's own Llama runs through ``max generate``, in
float32, which is what it has on a CPU. 7B has 4 bits only.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models

MEASURES = ("prefill", "decode", "decode_deep", "decode_batch", "end_to_end")
Results = dict[str, dict[str, list[float]]]


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


def worker(engine: str, folder: Path, gguf: Path | None) -> dict[str, float]:
    """Runs ``benchmarks/worker.py`` and returns what it measured."""
    return in_process(engine, folder, *([gguf] if gguf else []))


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


def run_round(
    turn: int, engines: dict[str, Callable[[], dict[str, float]]], results: Results
) -> None:
    """Runs every engine once, in an order rotated by ``turn``; adds to ``results``."""
    runs = list(engines.items())
    at = turn % len(runs)
    for engine, run in runs[at:] + runs[:at]:
        measured = results.setdefault(engine, defaultdict(list))
        for name, value in run().items():
            measured[name].append(value)


def max_generate(folder: Path, *flags: str) -> dict[str, float]:
    """Runs ``max generate`` and returns the rates that it prints."""
    prompt = "".join(chr(97 + i % 26) for i in range(500))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "max"), "generate", "--model", str(folder)]
        + ["--devices", "cpu", "--max-length", "1024", "--max-new-tokens", "100"]
        + ["--temperature", "0", "--prompt", prompt, *flags],
        env=dict(os.environ) | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"max generate failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = re.findall(r"Eval throughput \(token-generation\): ([\d.]+)", done.stdout)
    return {"end_to_end": float(found[-1])}


def engines(folder: Path, encoding: str) -> dict[str, Any]:
    """Returns what measures each engine on a model in an encoding."""
    gguf = folder / "model-bf16.gguf"
    if encoding != "bf16":
        gguf = models.quantize(folder, encoding)
    ours = None if encoding == "bf16" else gguf.resolve()
    flags = ["--custom-architectures", "max_mistral"]
    flags += ["--quantization-encoding", "float32"]
    flags += ["--weight-path", str(ours)] if ours else []
    chosen: dict[str, Any] = {
        "max_mistral": lambda: (
            worker("max_mistral", folder, ours) | max_generate(folder, *flags)
        ),
        "llama.cpp": lambda: (
            worker("llama.cpp", folder, gguf) | worker("llama.cpp-user", folder, gguf)
        ),
    }
    if encoding == "bf16":
        chosen["torch"] = lambda: worker("torch", folder, None)
        stock = ["--quantization-encoding", "float32"]
        chosen["MAX float32"] = lambda: max_generate(models.stock(folder), *stock)
    return chosen


def table(
    results: Results, measures: Iterable[str] = MEASURES, base: str = "llama.cpp"
) -> str:
    """Returns medians, and in brackets the ratio to the engine ``base``'s.

    The memory is the peak over the weights and the KV cache that the engine
    reserves: for 8 requests of 4,224 tokens in float32, for one in float16.
    """
    head = f"{'':12}" + "".join(f"{name:>16}" for name in measures)
    lines = [head + "  peak GB" * any("peak_bytes" in m for m in results.values())]
    for engine, measured in results.items():
        cells = []
        for name in measures:
            if name not in measured:
                cells.append(f"{'':>16}")
                continue
            ratio = ratios(results, engine, name, base)
            value = statistics.median(measured[name])
            cells.append(f"{f'{value:.1f} ({ratio:.2f}x)':>16}")
        if "peak_bytes" in measured:
            # The first round may compile in the process, which takes memory too.
            peak = min(measured["peak_bytes"])
            over = peak / measured["needed_bytes"][0]
            cells.append(f"{peak / 1e9:9.1f} ({over:.2f}x weights and KV)")
        lines.append(f"{engine:12}" + "".join(cells))
    return "\n".join(lines)


def ratios(results: Results, engine: str, name: str, base: str = "llama.cpp") -> float:
    """Returns the median of an engine's ratios to ``base``'s, round by round."""
    pairs = zip(results[engine][name], results[base][name], strict=True)
    return statistics.median(value / other for value, other in pairs)


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
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
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
            results: Results = {}
            speeds = []
            for turn in range(arguments.rounds):
                speeds.append(bandwidth())
                runs = engines(folder, encoding)
                run_round(turn, runs, results)
            ordered = {name: results[name] for name in runs}
            speed = statistics.median(speeds)
            size = results["llama.cpp"]["weight_bytes"][0]
            reads = statistics.median(results["max_mistral"]["decode"]) * size
            print(
                f"\n{shape} {encoding}, tokens/s; decode reads {reads / 1e9:.1f} GB/s "
                f"of weights, the probe read {speed / 1e9:.1f}"
            )
            print(table(ordered), flush=True)
            report[f"{shape} {encoding}"] = {"bandwidth": speeds, **ordered}
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
