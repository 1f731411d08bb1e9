"""What a GPU reaches, and how long a run on it takes: for ``benchmarks/matmul.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops

from max_mistral.gpu_matmul.asked import VENDOR
from max_mistral.gpu_matmul.check_operands import encode
from max_mistral.gpu_matmul.matmuls import compile_with
from max_mistral.gpu_matmul.products import Operand
from workbench import check_device

SECONDS = 0.2


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
    side, numbers = (128, 2**20) if check_device.is_dry() else (8192, 2**30)
    square = TensorType(DType.bfloat16, (side, side), ref)
    with Graph("ceilings", input_types=[square, square]) as graph:
        a, b = (value.tensor for value in graph.inputs)
        graph.output(a @ b.T)
    multiply = session.load(graph)
    flat = TensorType(DType.bfloat16, (numbers,), ref)
    with Graph("copy", input_types=[flat]) as graph:
        graph.output(ops.negate(graph.inputs[0].tensor))
    copy = session.load(graph)
    matrix = on_device(Operand(DType.bfloat16, (side, side)), device)
    vector = on_device(Operand(DType.bfloat16, (numbers,)), device)
    copied = seconds(lambda: copy.execute(vector), device)
    multiplied = seconds(lambda: multiply.execute(matrix, matrix), device)
    # Of 2 bytes each, read and written.
    return {
        "bytes/s": 2 * 2 * numbers / copied,
        "operations/s": 2 * side**3 / multiplied,
    }
