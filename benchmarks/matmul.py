"""The matmuls that a model may run on this GPU: are they right, and how fast?

    python -m benchmarks.matmul              # exits with 1 if one could not be measured
    python -m benchmarks.matmul --config CONFIG_JSON --matmuls own cublas
    python -m benchmarks.matmul --matmuls --json ceilings.json  # what the GPU reaches
    python -m benchmarks.matmul --matmuls own --parts times --ceilings ceilings.json

Of one layer and the head of a 7B model, in bfloat16, and the layer in FP8 with a scale
for each row (``fp8``, ``MAX_MISTRAL_FP8=keep``): what the self-check at load says
of them, and for each number of rows the time of all five products, with the share of
what the GPU reaches when it copies memory (``of memory``) and when cuBLAS multiplies
8,192 x 8,192 matrices (``of peak``). Each matmul in a process of its own, one after
another, which prints each result at once. That a matmul is wrong is a result, not a
failure. What cannot run here is left out, which is no failure either: ``multistage``
and ``fp8`` on a GPU that is not NVIDIA's, ``cublas`` and the shares without cuBLAS. If
nothing is left, the exit status is 77.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from max.driver import Device, accelerator_api
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, default_custom_extensions_scope

from benchmarks.matmul_ceilings import ceilings, on_device, seconds
from benchmarks.matmul_report import answer, known_ceilings, report
from benchmarks.rounds import in_process
from max_mistral.gpu_matmul.asked import MULTISTAGE, OWN, VENDOR, Matmul
from max_mistral.gpu_matmul.check_operands import rows_of
from max_mistral.gpu_matmul.cublas import INSTALL, load_cublas
from max_mistral.gpu_matmul.matmuls import compile_with, describe
from max_mistral.gpu_matmul.products import (
    Product,
    block_products,
    check_graph,
    operands_of,
)
from max_mistral.gpu_matmul.self_check import wrong_products
from workbench import check_device
from workbench.demo import ROOT
from workbench.record import place, write
from workbench.verdict import LEFT_OUT, say

MATMULS = {"own": OWN, "cublas": VENDOR, "multistage": MULTISTAGE, "fp8": MULTISTAGE}
PARTS = ("check", "times")
ROWS = (1, 2, 8, 16, 32, 64, 128, 256, 1024, 4096)
CONFIG = ROOT / "tests/fixtures/configs/mistralai/Mistral-7B-Instruct-v0.3/config.json"


def products(config: dict[str, Any], matmul: str = "own") -> list[Product]:
    """Returns the products of the head and a layer, and what is fused with each.

    As the self-check of a model at load has them, of which MAX then finds the graph
    compiled.
    """
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    head = Product(config["vocab_size"], hidden, "float32", is_head=True)
    fp8 = matmul == "fp8"
    return [head, *block_products(hidden, wide, queries, keys, fp8=fp8)]


def read(path: Path) -> dict[str, Any]:
    """Returns a model's config; in a dry run of its kind, but with small sizes."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values | check_device.SMALL if check_device.is_dry() else values


def missing(matmul: Matmul) -> str | None:
    """Returns why a matmul cannot run on this GPU; ``None`` if it can."""
    api = accelerator_api()
    # MAX's own would run in its place, and be taken for it.
    if matmul is MULTISTAGE and api != "cuda":
        return f"its kernels are for NVIDIA's GPUs, not for {api}"
    if matmul is VENDOR and api == "cuda" and load_cublas() is None:
        return f"no cuBLAS here ({INSTALL})"
    return None


def measure(
    matmul: str, config: dict[str, Any], parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Returns what the self-check finds, and seconds for each number of rows.

    Says both on the way, for who ends this before it is done.
    """
    device = check_device.device()
    session = InferenceSession(devices=[device])
    every = products(config, matmul)
    libraries = compile_with(MATMULS[matmul], session, every, fp8=matmul == "fp8")
    with default_custom_extensions_scope(*libraries):
        found = check(matmul, session, device, every) if "check" in parts else {}
        if "times" not in parts:
            return found
        graph = check_graph(every, DType.bfloat16, DeviceRef.from_device(device))
        model = session.load(graph)
    operands = [
        (operand, on_device(operand, device))
        for product in every
        for operand in operands_of(product, max(ROWS), DType.bfloat16)
    ]
    times = {}
    for rows in ROWS:
        inputs = [
            buffer if operand.is_weight else rows_of(buffer, 0, rows)
            for operand, buffer in operands
        ]
        times[str(rows)] = seconds(lambda: model.execute(*inputs), device)
        progress(f"{matmul}, {rows} rows: {1e3 * times[str(rows)]:.3f} ms")
    return found | {"seconds": times}


def check(
    matmul: str, session: InferenceSession, device: Device, every: list[Product]
) -> dict[str, Any]:
    """Returns what the self-check finds, and how long it takes."""
    start = time.perf_counter()
    wrong = wrong_products(session, [device], every, DType.bfloat16)
    # A line a product: what is wrong is often wrong for most numbers of rows.
    by_product = [
        describe([each for each in wrong if each.product == product])
        for product in dict.fromkeys(each.product for each in wrong)
    ]
    says = [str(said) for said in by_product]
    progress(f"{matmul}: {'; '.join(says) or 'right'}")
    return {
        "wrong": [str(found) for found in wrong],
        "says": says,
        "check_seconds": time.perf_counter() - start,
    }


def progress(line: str) -> None:
    """Says what is found so far; the results alone go to the standard output."""
    print(line, file=sys.stderr, flush=True)


def figures(
    name: str, config: dict[str, Any], parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Returns what a matmul's process, or that of the ceilings, finds."""
    if said := missing(VENDOR if name == "ceilings" else MATMULS[name]):
        # "failed" too, by which benchmarks/gpu.py knows that there are no ceilings.
        return {"failed": f"{name} is left out: {said}.", "left_out": True}
    if name == "ceilings":
        return ceilings(check_device.device())
    return measure(name, config, parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engine", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument(
        "--matmuls",
        nargs="*",
        choices=MATMULS,
        default=[*MATMULS],
        help="by default all; with none, what the GPU reaches",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="by default both"
    )
    parser.add_argument(
        "--ceilings", type=Path, help="what --json wrote of the GPU: not measured again"
    )
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    config = read(arguments.config)
    if check_device.is_dry():
        config["vocab_size"] = config["hidden_size"] * 2
    if arguments.engine:
        print(json.dumps(figures(arguments.engine, config, arguments.parts)))
        return
    todo = [*arguments.matmuls]
    found: dict[str, dict[str, Any]] = {}
    if arguments.ceilings:
        found["ceilings"] = known_ceilings(arguments.ceilings)
    elif "times" in arguments.parts or not todo:
        todo = ["ceilings", *todo]
    for name in todo:
        flags = ["--config", arguments.config, "--parts", *arguments.parts]
        try:
            found[name] = in_process(
                name, *flags, module="benchmarks.matmul", shown=True
            )
        except SystemExit as end:
            found[name] = {"failed": str(end)}
        if "failed" in found[name]:
            print(found[name]["failed"], flush=True)
        write(arguments.json, found)
    every = {m: products(config, m) for m in MATMULS}
    print(report(found, every), flush=True)
    say(answer(found, every))
    failed = [
        name
        for name in todo
        if "failed" in found[name] and "left_out" not in found[name]
    ]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")
    if all("left_out" in found[name] for name in arguments.matmuls or ["ceilings"]):
        sys.exit(LEFT_OUT)


if __name__ == "__main__":
    main()
