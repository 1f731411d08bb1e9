"""Whether a matmul computes on this device what it should, at a model's shapes.

MAX 26.7's own is wrong in bfloat16 on Hopper for some numbers of rows
(modular/modular #6883, #6884, #7146), and right for one row, which another kernel
computes. So each row of a product is held against the same row alone, and that
against NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef

from ..formats.restore import fp8_values
from .products import Operand, Product, check_graph, operands_of, static_scales

# On both sides of tiles that have as many rows; and MAX chooses its tile by them, in
# a 7B model another from 257 and from 513 on.
_FEW = sorted({2, 9, 17, 33, 65, 129, *range(8, 257, 8)})
_MANY = (384, 512, 768, 1024, 2048)
_ALONE = 257
"""How many different rows ``x`` has; more are these again. A prime, so that rows of
two tiles are never the same."""
# The last that MAX's choice depends on.
MOST_ROWS = 8192
# Products of several rows begin at another row each time: a row that a kernel leaves
# as it was must not be right by what an earlier product wrote there. Operands of 32
# rows lie as those of 0 do.
_SHIFTS = range(0, 256, 32)

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


def rows_to_try(*largest: int | None) -> list[int]:
    """Returns how many rows products are tried with; a head with :func:`head_rows`.

    Args:
        largest: How many tokens a step has at most, and the head's rows, if known.
    """
    most = [max(2, min(rows, MOST_ROWS)) for rows in largest if rows is not None]
    return sorted({*_FEW, *_MANY, *most})


def head_rows(requests: int | None) -> int:
    """Returns how many rows a head is tried with at most.

    Args:
        requests: On how many it runs at most, if that is known.
    """
    return max(max(_FEW), min(requests or 0, MOST_ROWS))


def wrong_products(
    session: InferenceSession,
    device: Device,
    products: Sequence[Product],
    dtype: DType,
    tokens: int | None = None,
    requests: int | None = None,
) -> list[Wrong]:
    """Returns the products that are wrong, with the numbers of rows.

    Meanwhile the device holds their weights, random ones, and operands and results
    of as many rows as are tried: of a block and the head of a 7B model in bfloat16
    0.7 GB, and 0.2 GB for each 1,024 rows, of the head 0.1 GB. The host holds 0.2 GB,
    and one product's operands or result at a time.

    Args:
        session: Compiles them, with the matmul that it is configured for.
        device: Where.
        products: Which; one at least.
        dtype: Of operands that are not FP8, and of results.
        tokens: How many a step has at most; see :func:`rows_to_try`.
        requests: On how many rows the head runs; see :func:`head_rows`.
    """
    graph = check_graph(products, dtype, DeviceRef.from_device(device))
    model = session.load(graph)
    tried = rows_to_try(tokens, requests)
    most = [
        head_rows(requests) if product.is_head else tried[-1] for product in products
    ]
    # Apart, or a row of x would be one of a weight's.
    draws = np.random.default_rng(0).standard_normal((2, _PERIOD), dtype=np.float32)
    operands = [
        _Operands.of(product, draws, rows, dtype, device)
        for product, rows in zip(products, most, strict=True)
    ]
    single = []
    for row in range(_ALONE):
        one = _run(model, [each.inputs(row, row + 1) for each in operands])
        single.append([_decode(_raw(output)) for output in one])
    alone = [np.concatenate(rows) for rows in zip(*single, strict=True)]
    found = []
    for product, operand, by_itself in zip(products, operands, alone, strict=True):
        off = _off(by_itself[:, operand.sample], operand.expected)
        found.append(Wrong(product, 1, _wrong_rows(product, off, dtype)))
    for rows, first in zip(tried, cycle(_SHIFTS)):
        counts = [min(rows, each) for each in most]
        together = _run(
            model,
            [
                each.inputs(first, first + n)
                for each, n in zip(operands, counts, strict=True)
            ],
        )
        for product, count, output, by_itself in zip(
            products, counts, together, alone, strict=True
        ):
            if count == rows:
                wanted = np.roll(by_itself, -first, axis=0)
                wrong = _compare(product, output, wanted, dtype)
                found.append(Wrong(product, rows, wrong))
    return [each for each in found if each.wrong_rows]


def _compare(product: Product, output: Buffer, alone: Array, dtype: DType) -> int:
    """Returns how many rows are not what they are alone.

    As many at a time as ``alone`` has: in float32 all would be too large.
    """
    wrong = 0
    raw = _raw(output)
    for first in range(0, len(raw), len(alone)):
        part = _decode(raw[first : first + len(alone)])
        wrong += _wrong_rows(product, _off(part, alone[: len(part)]), dtype)
    return wrong


@dataclass(frozen=True)
class _Operands:
    buffers: list[tuple[Operand, Buffer]]
    sample: slice
    """The columns of the result that are known."""
    expected: Array
    """These, by NumPy."""

    @classmethod
    def of(
        cls, product: Product, draws: Array, rows: int, dtype: DType, device: Device
    ) -> _Operands:
        operands = operands_of(product, _ALONE, dtype)
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
        if product.then == "swiglu":
            expected = first / (1 + np.exp(-first)) * second[0]
        elif product.static:
            expected = first * np.float32(np.prod(static_scales(product)))
        elif product.fp8:
            expected = others[0][:, None] * first * others[1][sample]
        buffers = []
        most = operands_of(product, rows + _SHIFTS[-1], dtype)
        for operand, raw in zip(most, raws, strict=True):
            # The same rows again; a weight is as it was.
            longer = raw if operand.is_weight else np.resize(raw, operand.shape)
            buffer = Buffer.from_numpy(longer).view(operand.dtype, longer.shape)
            buffers.append(buffer.to(device))
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
    x, weight = draws
    smaller = np.float32(1 / np.sqrt(product.terms))
    if product.static:
        return [x, weight]
    if product.fp8:
        row_scales, column_scales = np.add(1, np.tanh(draws) / 2, dtype=np.float32)
        return [x, weight, row_scales * smaller, column_scales]
    return [x * smaller, weight]


def _run(model: Model, inputs: Sequence[Sequence[Buffer]]) -> Sequence[Buffer]:
    """Returns the products' results."""
    return model.execute(*(buffer for each in inputs for buffer in each))


def _raw(output: Buffer) -> npt.NDArray[Any]:
    """Returns a result on the host, in what NumPy has for it."""
    if output.dtype == DType.float32:
        return output.to_numpy()
    return output.view(DType.uint16, output.shape).to_numpy()


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


def allowed(product: Product, dtype: DType) -> float:
    """Returns how far rounding may move results: their error's root mean square.

    Relative to that of the results. A sum is rounded to ``dtype`` once, and where MAX
    splits it into up to eight and adds these up, not more than 16 times; both of the
    results compared. Roundings know nothing of each other, so they add up as their
    squares, each with less than a unit's. In float32, where MAX sums up, K terms add
    nothing to that; but Hopper's tensor cores cut a sum in FP8 to 14 bits after every
    32 terms, each time by half a last place, which do not cancel.

    SwiGLU of normal values multiplies a relative error by at most 3: (1.1 + 0.6) /
    0.6, where 1.1 is the steepest slope of silu, and 0.6 the size of its values.

    What leaves out 64 of K terms is off by 8 / sqrt(K), which is more up to K = 2**17,
    and in FP8 up to 2**14. What has nothing to do with the operands is off by 1.
    """
    unit = math.sqrt(2 * 16) * _UNITS[dtype]
    if product.fp8:
        unit += product.terms / 32 * 2.0**-14
    return unit * (3 if product.then == "swiglu" else 1)


def _wrong_rows(product: Product, off: Array, dtype: DType) -> int:
    """Returns how many rows have a block that is off by more than is allowed."""
    # Not "off > allowed", which NaN would pass.
    return int((~(off <= allowed(product, dtype))).any(axis=1).sum())


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
