"""The matmuls that a model may run on this GPU: are they right, and how fast?

    python -m benchmarks.matmul                      # exits with 1 if one failed
    python -m benchmarks.matmul --config CONFIG_JSON --matmuls own cublas

Of one layer and the head of a 7B model, in bfloat16, and the layer in FP8 with a scale
for each row (``fp8``, ``MAX_MISTRAL_FP8=keep``): what the self-check at load says
of them, and for each number of rows the time of all five products, with the share of
what the GPU reaches when it copies memory (``of memory``) and when cuBLAS multiplies
8,192 x 8,192 matrices (``of peak``). Each matmul in a process of its own, one after
another. What cannot run here is left out, which is no failure: ``multistage`` and
``fp8`` on a GPU that is not NVIDIA's, ``cublas`` and the shares without cuBLAS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from max.driver import Buffer, Device, accelerator_api
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import (
    DeviceRef,
    Graph,
    TensorType,
    default_custom_extensions_scope,
    ops,
)

from benchmarks.rounds import in_process
from max_mistral.gpu_matmul.cublas import INSTALL, load_cublas
from max_mistral.gpu_matmul.matmuls import MULTISTAGE, OWN, VENDOR, Matmul, compile_with
from max_mistral.gpu_matmul.products import (
    Operand,
    Product,
    block_products,
    check_graph,
    operands_of,
)
from max_mistral.gpu_matmul.self_check import encode, rows_of, wrong_products
from workbench import check_device
from workbench.demo import ROOT
from workbench.record import place, write

MATMULS = {"own": OWN, "cublas": VENDOR, "multistage": MULTISTAGE, "fp8": MULTISTAGE}
ROWS = (1, 2, 8, 16, 32, 64, 128, 256, 1024, 4096)
SECONDS = 0.2
CONFIG = ROOT / "tests/fixtures/configs/mistralai/Mistral-7B-Instruct-v0.3/config.json"


def products(config: dict[str, Any], matmul: str = "own") -> list[Product]:
    """Returns the products of a layer and the head, and what is fused with each."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    head = Product(config["vocab_size"], hidden, "float32", is_head=True)
    fp8 = matmul == "fp8"
    return [*block_products(hidden, wide, queries, keys, fp8=fp8), head]


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


def seconds(run: Callable[[], object], device: Device) -> float:
    """Returns what one run takes where many are queued, the median of five."""
    run()
    device.synchronize()
    start = time.perf_counter()
    run()
    device.synchronize()
    count = max(3, int(SECONDS / 5 / (time.perf_counter() - start)))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            run()
        device.synchronize()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times)


def on_device(operand: Operand, device: Device) -> Buffer:
    """Returns random values near 0, a million different ones."""
    draws = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    encoded = encode(draws / np.float32(64), operand.dtype)
    raw: Any = np.resize(encoded, [*operand.shape])
    return Buffer.from_numpy(raw).view(operand.dtype, raw.shape).to(device)


def ceilings(device: Device) -> dict[str, float]:
    """Returns bytes a second of a copy, and operations a second of cuBLAS."""
    session = InferenceSession(devices=[device])
    compile_with(VENDOR, session)
    ref = DeviceRef.from_device(device)
    side, copied_numbers = (128, 2**20) if check_device.is_dry() else (8192, 2**30)
    square = TensorType(DType.bfloat16, (side, side), ref)
    with Graph("ceilings", input_types=[square, square]) as graph:
        a, b = (value.tensor for value in graph.inputs)
        graph.output(a @ b.T)
    multiply = session.load(graph)
    flat = TensorType(DType.bfloat16, (copied_numbers,), ref)
    with Graph("copy", input_types=[flat]) as graph:
        graph.output(ops.negate(graph.inputs[0].tensor))
    copy = session.load(graph)
    matrix = on_device(Operand(DType.bfloat16, (side, side)), device)
    vector = on_device(Operand(DType.bfloat16, (copied_numbers,)), device)
    copied = seconds(lambda: copy.execute(vector), device)
    multiplied = seconds(lambda: multiply.execute(matrix, matrix), device)
    # Of 2 bytes each, read and written.
    return {
        "bytes/s": 2 * 2 * copied_numbers / copied,
        "operations/s": 2 * side**3 / multiplied,
    }


def measure(matmul: str, config: dict[str, Any]) -> dict[str, Any]:
    """Returns what the self-check finds, and seconds for each number of rows."""
    device = check_device.device()
    session = InferenceSession(devices=[device])
    libraries = compile_with(MATMULS[matmul], session, fp8=matmul == "fp8")
    every = products(config, matmul)
    with default_custom_extensions_scope(*libraries):
        start = time.perf_counter()
        wrong = wrong_products(session, device, every, DType.bfloat16)
        check = time.perf_counter() - start
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
    return {
        "wrong": [str(found) for found in wrong],
        "check_seconds": check,
        "seconds": times,
    }


def figures(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a matmul's process, or that of the ceilings, finds."""
    if said := missing(VENDOR if name == "ceilings" else MATMULS[name]):
        # "failed" too, by which benchmarks/gpu.py knows that there are no ceilings.
        return {"failed": f"{name} is left out: {said}.", "left_out": True}
    if name == "ceilings":
        return ceilings(check_device.device())
    return measure(name, config)


def report(found: dict[str, dict[str, Any]], every: dict[str, list[Product]]) -> str:
    """Returns the table; without the shares, if what the GPU reaches is not known."""
    top = found["ceilings"]
    reached = "What the GPU reaches was not measured."
    if "failed" not in top:
        reached = (
            f"A copy moves {top['bytes/s'] / 1e12:.2f} TB/s, cuBLAS computes "
            f"{top['operations/s'] / 1e12:.0f} TFLOP/s."
        )
    lines = [
        reached,
        "",
        "| rows | "
        + " | ".join(f"{m}, ms | of memory | of peak" for m in MATMULS)
        + " |",
        "|---" * (1 + 3 * len(MATMULS)) + "|",
    ]
    for rows in ROWS:
        cells = [str(rows)]
        for matmul in MATMULS:
            if "seconds" not in found.get(matmul, {}):
                cells += ["-"] * 3
                continue
            taken = found[matmul]["seconds"][str(rows)]
            weights = [(p.columns * p.terms, p.fp8) for p in every[matmul]]
            bytes_ = sum(numbers * (1 if fp8 else 2) for numbers, fp8 in weights)
            operations = sum(2 * rows * numbers for numbers, _ in weights)
            cells += [f"{1e3 * taken:.3f}"]
            if "failed" in top:
                cells += ["-"] * 2
                continue
            cells += [f"{bytes_ / taken / top['bytes/s']:.0%}"]
            cells += [f"{operations / taken / top['operations/s']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    for matmul, values in found.items():
        if "wrong" in values:
            verdict = "; ".join(values["wrong"]) or "right"
            lines += ["", f"{matmul} ({values['check_seconds']:.0f} s): {verdict}"]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engine", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--matmuls", nargs="+", choices=MATMULS, default=[*MATMULS])
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    config = read(arguments.config)
    if check_device.is_dry():
        config["vocab_size"] = config["hidden_size"] * 2
    if arguments.engine:
        print(json.dumps(figures(arguments.engine, config)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in ("ceilings", *arguments.matmuls):
        try:
            found[name] = in_process(
                name, "--config", arguments.config, module="benchmarks.matmul"
            )
        except SystemExit as end:
            found[name] = {"failed": str(end)}
        if "failed" in found[name]:
            print(found[name]["failed"])
        write(arguments.json, found)
    print(report(found, {m: products(config, m) for m in MATMULS}))
    failed = [
        name
        for name, values in found.items()
        if "failed" in values and "left_out" not in values
    ]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
