"""Side by side on this GPU: max_mistral, MAX's own Mistral, transformers, vLLM.

    make check-gpu                       # or, to choose:
    python -m benchmarks.gpu --rounds 3
    python -m benchmarks.gpu max_mistral --json report.json   # one engine, once

Mistral-7B-v0.3's config and the same seeded random bfloat16 weights for all.
Every round runs every engine once, in rotated order, each in a process of its
own; the table has the medians in tokens a second, and the median of the rounds'
ratios to MAX's own Mistral; below, what share of the GPU's memory bandwidth and of
its arithmetic that is, as ``benchmarks/matmul.py`` measures them, and how much of the
GPU's memory each takes (see ``benchmarks/gpu_memory.py``). Each engine's
model alone is measured, and the choice of the likeliest token on the GPU, of which
the number comes to the host. vLLM's step is more: its scheduler and its sampling, and
it has captured device graphs, which max_mistral has in ``max serve`` only and MAX's own
Mistral not at all. transformers is there where torch with CUDA is, vLLM where it is
installed. Takes 15 GB of disk and 24 GB of the GPU's memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import matmul, models
from benchmarks.gpu_engines import BASE, DECODES, OnGpu, Vllm
from benchmarks.gpu_memory import taken_bytes, used_bytes
from benchmarks.gpu_shares import answer, shares, shares_text
from benchmarks.matmul_report import known_ceilings
from benchmarks.measure import Engine, measure
from benchmarks.report import MADE, Results, table
from benchmarks.rounds import in_process, run_rounds
from benchmarks.worker import Torch
from workbench import check_device
from workbench.record import origin, place, write
from workbench.verdict import LEFT_OUT, say

CUDA = "import torch; print(torch.cuda.is_available())"
TORCH = "import torch; print(True)"
# How to ask for what an engine needs, and what it is.
NEEDS = {
    "transformers": (CUDA, "torch with CUDA"),
    "vLLM": ("import vllm; print(True)", "vllm"),
}
ENGINES = ("max_mistral", BASE, *NEEDS)
FOLDER = Path("build/bench/gpu")
MEMORY = "gpu_bytes"


def run(
    name: str,
    folder: Path,
    ceilings: Path | None = None,
    report: Path | None = None,
) -> None:
    """Measures one engine; prints each rate as it comes, and at last JSON.

    Args:
        name: Of the engine.
        folder: The checkpoint.
        ceilings: What ``benchmarks.matmul --json`` has written, to say what share
            of the GPU the engine takes.
        report: Where to write what is known, again and again.
    """
    if said := missing(name):
        print(said)
        sys.exit(LEFT_OUT)
    # Written last.
    if not (folder / "model.safetensors.index.json").exists():
        sys.exit(
            f"{folder} has no model.safetensors.index.json, and the benchmark's "
            "weights belong there. To make them: python -m benchmarks.gpu --make "
            f"--folder {folder}"
        )
    before = used_bytes()
    engine: Engine
    if name == "transformers":
        engine = Torch(folder, None, "cpu" if check_device.is_dry() else "cuda")
    elif name == "vLLM":
        engine = Vllm(folder)
    else:
        engine = OnGpu(folder, name)
    rates: dict[str, float] = {}
    found: dict[str, Any] = {
        "engine": name,
        MADE: origin("max", "torch", "transformers", "vllm"),
        "tokens_per_second": rates,
    }
    for key, value in measure(engine, DECODES, prefills=10):
        rates[key] = value
        write(report, found)
        print(f"{key:12}{value:10.1f} tokens/s", file=sys.stderr, flush=True)
    if taken := taken_bytes(before, is_max=name not in NEEDS):
        found[MEMORY] = taken
    reached: dict[str, Any] = {}
    if ceilings is not None:
        reached = known_ceilings(ceilings)
        found["shares"] = shares(rates, reached)
        print(shares_text(rates, reached))
    write(report, found)
    say(answer(rates, reached, taken))
    # Last, for main() reads it.
    print(json.dumps(rates | ({MEMORY: taken} if taken else {})), flush=True)


def missing(name: str) -> str | None:
    """Returns what an engine lacks here, as a sentence."""
    if name not in NEEDS:
        return None
    code, what = NEEDS[name]
    if code == CUDA and check_device.is_dry():
        code, what = TORCH, "torch"
    return None if ask(code) == "True" else f"{name} is left out: no {what} here."


def ask(code: str) -> str:
    """Returns what Python code prints, ``""`` where it fails.

    In a process of its own, for MAX takes most of the GPU's memory at once.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode else done.stdout.strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "engine", nargs="?", choices=ENGINES, help="one, once; by default all, in turns"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--make", action="store_true", help="the weights, no more")
    parser.add_argument(
        "--ceilings",
        type=Path,
        help="what benchmarks.matmul --json wrote of the GPU, for one engine",
    )
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    # MAX's own Mistral fails without head_dim, which the published config lacks.
    values = {"head_dim": 128} | matmul.read(matmul.CONFIG)
    if arguments.make:
        folder = models.make_safetensors(values, arguments.folder)
        if check_device.is_dry():
            models.stock(folder)
    elif arguments.engine:
        run(arguments.engine, arguments.folder, arguments.ceilings, arguments.json)
    else:
        compare(values, arguments.folder, arguments.rounds, arguments.json)


def compare(
    values: dict[str, Any], folder: Path, rounds: int, path: Path | None
) -> None:
    """Runs all engines in turns, and prints them side by side.

    Args:
        values: The model's config.
        folder: Where its weights are, or are made.
        rounds: How often each engine runs.
        path: Where to write the results.
    """
    gpu = ask(check_device.GPU_NAME)
    if not gpu:
        sys.exit("benchmarks.gpu needs a GPU, and MAX finds none here.")
    names = ["max_mistral", BASE]
    for name in NEEDS:
        if said := missing(name):
            print(said)
        else:
            names.append(name)
    models.make_safetensors(values, folder)
    flags = ["--folder", folder]
    runs = {
        name: functools.partial(in_process, name, *flags, module="benchmarks.gpu")
        for name in names
    }
    report: dict[str, Any] = {"gpu": gpu}
    report |= origin("max", "torch", "transformers", "vllm")

    def keep(results: Results) -> None:
        report["tokens_per_second"] = {
            name: {key: each for key, each in found.items() if key != MEMORY}
            for name, found in results.items()
        }
        report[MEMORY] = {
            name: max(found[MEMORY])
            for name, found in results.items()
            if MEMORY in found
        }
        write(path, report)

    results, failed = run_rounds(rounds, runs, keep)
    keep(results)
    print(f"\nMistral 7B in bfloat16 on {gpu}, tokens/s and ratio to MAX's own")
    print(table(results, ["prefill", *DECODES], BASE))
    for name, taken in report[MEMORY].items():
        print(f"{name} takes {taken / 1e9:.1f} GB of the GPU's memory.")
    try:
        ceilings: dict[str, Any] = {**in_process("ceilings", module=matmul.__name__)}
    except SystemExit as end:
        ceilings = {"failed": str(end)}
    if "failed" in ceilings:
        print(shares_text({}, ceilings))
    else:
        for name, found in results.items():
            medians = {key: statistics.median(values) for key, values in found.items()}
            print(f"\n{name}\n{shares_text(medians, ceilings)}")
    write(path, report | {"ceilings": ceilings})
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
