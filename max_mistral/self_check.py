"""Whether a matmul computes on this device what it should, at a model's shapes.

MAX 26.7's own is wrong in bfloat16 on Hopper for some numbers of rows
(modular/modular #6883, #6884, #7146), and right for one row, which another kernel
computes. So each row of a product is held against the same row alone, and that
against NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef

from .formats.restore import fp8_values
from .products import Operand, Product, check_graph, operands_of

ROWS = (2, 8, 9, 16, 17, 33, 41, 64, 65, 128, 129, 256)
"""How many rows a product is tried with: on both sides of a kernel's tiles."""

# The unit roundoff of what operands and results are rounded to. Of several rows
# NVIDIA's tensor cores take float32 as TF32, of 11 significant bits.
_UNITS = {DType.bfloat16: 2.0**-8, DType.float32: 2.0**-11}
# A prime, so that no two rows of a weight are alike.
_PERIOD = 1_000_003
# Narrower than any kernel's tile: what a wrong tile is off by is not averaged away.
_BLOCK = 64

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wrong:
    """A product of which some rows are wrong."""

    product: Product
    rows: int
    wrong_rows: int

    def __str__(self) -> str:
        shape = (self.rows, self.product.terms, self.product.columns)
        return f"{self.wrong_rows} of the rows for (M, K, N) = {shape}"


def wrong_products(
    session: InferenceSession,
    device: Device,
    products: Sequence[Product],
    dtype: DType,
) -> list[Wrong]:
    """Returns the products that are wrong, with the numbers of rows.

    Holds their weights, random ones, in the device's memory meanwhile.

    Args:
        session: Compiles them, with the matmul that it is configured for.
        device: Where.
        products: Which.
        dtype: Of operands that are not FP8, and of results.
    """
    if not products:  # a quantized model without a head
        return []
    graph = check_graph(products, dtype, DeviceRef.from_device(device))
    model = session.load(graph)
    draws = np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32)
    operands = [_Operands.of(product, draws, dtype, device) for product in products]
    single = [_run(model, operands, row, row + 1) for row in range(max(ROWS))]
    alone = [np.concatenate(rows) for rows in zip(*single, strict=True)]
    found = []
    for product, operand, by_itself in zip(products, operands, alone, strict=True):
        off = _off(by_itself[:, operand.sample], operand.expected)
        found += _wrong(product, 1, off, dtype)
    for rows in ROWS:
        together = _run(model, operands, 0, rows)
        for product, many, by_itself in zip(products, together, alone, strict=True):
            found += _wrong(product, rows, _off(many, by_itself[:rows]), dtype)
    return found


@dataclass(frozen=True)
class _Operands:
    buffers: list[tuple[Operand, Buffer]]
    sample: slice
    """The columns of the result that are known."""
    expected: Array
    """These, by NumPy."""

    @classmethod
    def of(
        cls, product: Product, draws: Array, dtype: DType, device: Device
    ) -> _Operands:
        operands = operands_of(product, max(ROWS), dtype)
        raws = [
            np.resize(encode(values, operand.dtype), operand.shape)
            for operand, values in zip(operands, _values(product, draws), strict=True)
        ]
        width = product.columns // (2 if product.then == "swiglu" else 1)
        sample = slice(max(0, width - _BLOCK), width)
        x, weight, *others = raws
        # Of SwiGLU, the same columns of both halves.
        halves = weight.reshape(-1, width, product.terms)[:, sample]
        first, *second = (_decode(x) @ _decode(half).T for half in halves)
        expected = first
        if product.then == "residual":
            expected = _decode(others[0])[:, sample] + first
        elif product.then == "swiglu":
            expected = first / (1 + np.exp(-first)) * second[0]
        elif product.fp8:
            expected = others[0][:, None] * first * others[1][sample]
        buffers = [
            Buffer.from_numpy(raw).view(operand.dtype, raw.shape).to(device)
            for operand, raw in zip(operands, raws, strict=True)
        ]
        return cls(list(zip(operands, buffers, strict=True)), sample, expected)

    def inputs(self, first: int, end: int) -> list[Buffer]:
        """Returns the operands of some of the rows."""
        return [
            buffer if operand.is_weight else rows_of(buffer, first, end)
            for operand, buffer in self.buffers
        ]


def rows_of(buffer: Buffer, first: int, end: int) -> Buffer:
    """Returns some of the rows, which share its memory."""
    whole = [slice(None) for _ in buffer.shape[1:]]
    return buffer[(slice(first, end), *whole)]


def _values(product: Product, draws: Array) -> list[Array]:
    """Returns what each operand is cut from, so that results are of about 1.

    There SwiGLU's silu is where models have it. No two scales are alike.
    """
    smaller = np.float32(1 / np.sqrt(product.terms))
    if product.fp8:
        scales = np.add(1, np.tanh(draws) / 2, dtype=np.float32)
        return [draws, draws, scales * smaller, scales]
    residual = [draws] if product.then == "residual" else []
    return [draws * smaller, draws, *residual]


def _run(
    model: Model, operands: Sequence[_Operands], first: int, end: int
) -> list[Array]:
    """Returns the results for some of the rows."""
    inputs = [buffer for each in operands for buffer in each.inputs(first, end)]
    outputs = model.execute(*inputs)
    return [
        _decode(
            output.to_numpy()
            if output.dtype == DType.float32
            else output.view(DType.uint16, output.shape).to_numpy()
        )
        for output in outputs
    ]


def _off(found: Array, wanted: Array) -> Array:
    """Returns the root mean square of the difference, ``[rows, blocks of columns]``.

    Relative to that of everything wanted.
    """
    squares = np.square(found - wanted)
    starts = np.arange(0, squares.shape[1], _BLOCK)
    sizes = np.diff(np.append(starts, squares.shape[1]))
    blocks = np.add.reduceat(squares, starts, axis=1) / sizes
    off: Array = np.sqrt(blocks / np.square(wanted).mean())
    return off


def _wrong(product: Product, rows: int, off: Array, dtype: DType) -> list[Wrong]:
    """Returns the product if it is off by more than rounding explains.

    A sum is rounded to ``dtype`` once, and where MAX splits it into up to eight and
    adds these up, not more than 16 times; both of the results compared. SwiGLU of
    normal values multiplies a relative error by at most 3: (1.1 + 0.6) / 0.6, where
    1.1 is the steepest slope of silu, and 0.6 the size of its values. What has
    nothing to do with the operands is off by 1 or more, not by 1/8 or 3/8.
    """
    allowed = 2 * 16 * _UNITS[dtype] * (3 if product.then == "swiglu" else 1)
    # Not "off > allowed", which NaN would pass.
    wrong_rows = int((~(off <= allowed)).any(axis=1).sum())
    return [Wrong(product, rows, wrong_rows)] if wrong_rows else []


def encode(values: Array, dtype: DType) -> npt.NDArray[Any]:
    """Returns values cut to ``dtype``, in what NumPy has for it."""
    if dtype == DType.float32:
        return values
    if dtype == DType.float8_e4m3fn:
        # The codes of numbers that are not negative, but NaN, rise with them.
        codes = np.searchsorted(fp8_values()[:127], np.abs(values), side="right") - 1
        return (codes + 128 * (values < 0)).astype(np.uint8)
    # NumPy has no bfloat16: the upper half of a float32.
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _decode(raw: npt.NDArray[Any]) -> Array:
    """Returns what :func:`encode` made, as float32."""
    if raw.dtype == np.float32:
        return raw
    if raw.dtype == np.uint8:
        return fp8_values()[raw]
    return (raw.astype(np.uint32) << 16).view(np.float32)
