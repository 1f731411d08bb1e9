"""Side by side on this GPU: max_mistral, MAX's own Mistral, transformers, vLLM.

    make check-gpu                       # or, to choose:
    python -m benchmarks.gpu --rounds 3

Mistral-7B-v0.3's config and the same seeded random bfloat16 weights for all.
Every round runs every engine once, in rotated order, each in a process of its
own; the table has the medians in tokens a second, and the median of the rounds'
ratios to MAX's own Mistral; below, what share of the GPU's memory bandwidth and of
its arithmetic that is, as ``benchmarks/matmul.py`` measures them. Each engine's
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import matmul, models
from benchmarks.gpu_engines import BASE, DECODES, OnGpu, Vllm
from benchmarks.measure import PREFILL, Engine, measure
from benchmarks.report import Results, table
from benchmarks.rounds import in_process, run_rounds
from benchmarks.worker import Torch
from workbench import check_device
from workbench.record import origin, place, write

CUDA = "import torch; print(torch.cuda.is_available())"
TORCH = "import torch; print(True)"
# How to ask for what an engine needs, and what it is.
NEEDS = {
    "transformers": (CUDA, "torch with CUDA"),
    "vLLM": ("import vllm; print(True)", "vllm"),
}
# An exit status, as pytest's where there is nothing to do.
NOTHING = 5


def run(name: str, folder: Path, matmuls: Path | None = None) -> None:
    """Measures one engine and prints JSON.

    Args:
        name: Of the engine.
        folder: The checkpoint.
        matmuls: What ``benchmarks.matmul --json`` has written, to say what share
            of the GPU the engine takes.
    """
    engine: Engine
    if said := missing(name):
        print(said)
        sys.exit(NOTHING)
    if name == "transformers":
        engine = Torch(folder, None, "cpu" if check_device.is_dry() else "cuda")
    elif name == "vLLM":
        engine = Vllm(folder)
    else:
        engine = OnGpu(folder, name)
    rates = measure(engine, DECODES, prefills=10)
    # First, whatever becomes of the rest; main() reads it, and asks for no more.
    print(json.dumps(rates))
    if matmuls is not None and matmuls.exists():
        print(shares(rates, json.loads(matmuls.read_text())["ceilings"]))


def missing(name: str) -> str | None:
    """Returns what an engine lacks here, as a sentence."""
    if name not in NEEDS:
        return None
    code, what = NEEDS[name]
    if code == CUDA and check_device.is_dry():
        code, what = TORCH, "torch"
    return None if ask(code) == "True" else f"{name} is left out: no {what} here."


def shares(rates: Mapping[str, float], ceilings: Mapping[str, Any]) -> str:
    """Returns a line for each measure: what it takes of the GPU.

    Args:
        rates: Tokens a second.
        ceilings: As :func:`benchmarks.matmul.ceilings` returns them, or why it has
            ``"failed"``, as without cuBLAS.
    """
    if "failed" in ceilings:
        return (
            "No shares of the GPU, for what it reaches was not measured: "
            f"{ceilings['failed']}"
        )
    values = matmul.read(matmul.CONFIG)
    *layer, head = matmul.products(values)
    layers = values["num_hidden_layers"]
    in_head = head.columns * head.terms
    in_layers = layers * sum(p.columns * p.terms for p in layer)
    # Keys and values of a token, in bfloat16.
    kv = 2 * 2 * layers * values["num_key_value_heads"] * 128
    lines = []
    for name, (batch, before, steps) in {"prefill": (1, PREFILL, 0), **DECODES}.items():
        tokens = PREFILL if name == "prefill" else batch
        seconds = tokens / rates[name]
        # A prompt's keys and values are written, a decode step's read.
        moved = 2 * (in_layers + in_head) + kv * batch * (before + steps // 2)
        memory = moved / seconds / ceilings["bytes/s"]
        # The head computes a prompt's last token only.
        computed = 2 * (in_layers * tokens + in_head * batch)
        peak = computed / seconds / ceilings["operations/s"]
        lines.append(f"{name:12}{memory:6.0%} of memory{peak:6.0%} of peak")
    return "\n".join(lines)


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
    """The command line; with two words or three, an engine's process."""
    name, *paths = sys.argv[1:] or [""]
    if len(paths) in (1, 2) and not name.startswith("-"):
        run(name, *map(Path, paths))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench/gpu"))
    parser.add_argument("--make", action="store_true", help="the weights, no more")
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    # MAX's own Mistral fails without head_dim, which the published config lacks.
    values = {"head_dim": 128} | matmul.read(matmul.CONFIG)
    if arguments.make:
        folder = models.make_safetensors(values, arguments.folder)
        if check_device.is_dry():
            models.stock(folder)
        return
    gpu = ask("from max.driver import Accelerator; print(Accelerator().model_name)")
    if not gpu:
        sys.exit("benchmarks.gpu needs a GPU, and MAX finds none here.")
    names = ["max_mistral", BASE]
    for name in NEEDS:
        if said := missing(name):
            print(said)
        else:
            names.append(name)
    folder = models.make_safetensors(values, arguments.folder)
    runs = {
        name: functools.partial(in_process, name, folder, module="benchmarks.gpu")
        for name in names
    }
    report: dict[str, Any] = {"gpu": gpu}
    report |= origin("max", "torch", "transformers", "vllm")

    def keep(results: Results) -> None:
        report["tokens_per_second"] = results
        write(arguments.json, report)

    results, failed = run_rounds(arguments.rounds, runs, keep)
    keep(results)
    print(f"\nMistral 7B in bfloat16 on {gpu}, tokens/s and ratio to MAX's own")
    print(table(results, ["prefill", *DECODES], BASE))
    try:
        ceilings: dict[str, Any] = {**in_process("ceilings", module=matmul.__name__)}
    except SystemExit as end:
        ceilings = {"failed": str(end)}
        print(shares({}, ceilings))
    else:
        for name, found in results.items():
            medians = {key: statistics.median(values) for key, values in found.items()}
            print(f"\n{name}\n{shares(medians, ceilings)}")
    write(arguments.json, report | {"ceilings": ceilings})
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
