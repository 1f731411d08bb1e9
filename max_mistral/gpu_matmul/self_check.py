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

from .check_operands import ALONE, BLOCK, PERIOD, SHIFTS, Array, Operands, decode
from .products import Product, check_graph

# On both sides of tiles that have as many rows; and MAX chooses its tile by them, in
# a 7B model another from 257 and from 513 on.
_FEW = sorted({2, 9, 17, 33, 65, 129, *range(8, 257, 8)})
_MANY = (384, 512, 768, 1024, 2048)
# The last that MAX's choice depends on.
MOST_ROWS = 8192
# The unit roundoff of what operands and results are rounded to. Of several rows
# NVIDIA's tensor cores take float32 as TF32, of 11 significant bits.
_UNITS = {DType.bfloat16: 2.0**-8, DType.float32: 2.0**-11}


@dataclass(frozen=True)
class Wrong:
    """A product of which some rows are wrong."""

    product: Product
    rows: int
    wrong_rows: int
    device: int = 0
    """Which of those that the model runs on; the first is 0."""

    def __str__(self) -> str:
        shape = (self.rows, self.product.terms, self.product.columns)
        on = f", on the model's GPU number {self.device + 1}," if self.device else ""
        return f"{self.wrong_rows} of the rows for (M, K, N) = {shape}{on}"


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
    devices: Sequence[Device],
    products: Sequence[Product],
    dtype: DType,
    tokens: int | None = None,
    requests: int | None = None,
) -> list[Wrong]:
    """Returns the products that are wrong, with the numbers of rows.

    Meanwhile each device holds their weights, random ones, and operands and results
    of as many rows as are tried: of a block and the head of a 7B model in bfloat16
    0.7 GB, and 0.2 GB for each 1,024 rows, of the head 0.1 GB. The host holds 0.2 GB
    for each, and one product's operands or result at a time.

    Args:
        session: Compiles them, with the matmul that it is configured for.
        devices: Where. On the first all numbers of rows are tried; the others, which
            should be like it, compute up to 256.
        products: Which; one at least.
        dtype: Of operands that are not FP8, and of results.
        tokens: How many a step has at most; see :func:`rows_to_try`.
        requests: On how many rows the head runs; see :func:`head_rows`.
    """
    references = [DeviceRef.from_device(device) for device in devices]
    model = session.load(check_graph(products, dtype, *references))
    tried = rows_to_try(tokens, requests)
    # Apart, or a row of x would be one of a weight's.
    draws = np.random.default_rng(0).standard_normal((2, PERIOD), dtype=np.float32)
    each: list[Operands] = []
    for product in products:
        most = [max(_FEW) for _ in devices]
        most[0] = head_rows(requests) if product.is_head else tried[-1]
        each += Operands.of(product, draws, most, dtype, devices)
    single = []
    for row in range(ALONE):
        one = _run(model, [operands.inputs(row, row + 1) for operands in each])
        single.append([decode(_raw(output)) for output in one])
    alone = [np.concatenate(rows) for rows in zip(*single, strict=True)]
    found = []
    for operands, by_itself in zip(each, alone, strict=True):
        off = _off(by_itself[:, operands.sample], operands.expected)
        found.append(_wrong(operands, 1, _wrong_rows(operands.product, off, dtype)))
    for rows, first in zip(tried, cycle(SHIFTS)):
        together = _run(
            model,
            [
                operands.inputs(first, first + min(rows, operands.most))
                for operands in each
            ],
        )
        for operands, output, by_itself in zip(each, together, alone, strict=True):
            if rows <= operands.most:
                wanted = np.roll(by_itself, -first, axis=0)
                wrong = _compare(operands.product, output, wanted, dtype)
                found.append(_wrong(operands, rows, wrong))
    return [one for one in found if one.wrong_rows]


def _wrong(operands: Operands, rows: int, wrong_rows: int) -> Wrong:
    return Wrong(operands.product, rows, wrong_rows, operands.device)


def _compare(product: Product, output: Buffer, alone: Array, dtype: DType) -> int:
    """Returns how many rows are not what they are alone.

    As many at a time as ``alone`` has: in float32 all would be too large.
    """
    wrong = 0
    raw = _raw(output)
    for first in range(0, len(raw), len(alone)):
        part = decode(raw[first : first + len(alone)])
        wrong += _wrong_rows(product, _off(part, alone[: len(part)]), dtype)
    return wrong


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
    starts = np.arange(0, squares.shape[1], BLOCK)
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
