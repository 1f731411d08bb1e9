"""The operands of the products that the self-check tries, and their worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from ..formats.restore import fp8_values
from .products import Operand, Product, operands_of, static_scales

ALONE = 257
"""How many different rows ``x`` has; more are these again. A prime, so that rows of
two tiles are never the same."""
# Products of several rows begin at another row each time: a row that a kernel leaves
# as it was must not be right by what an earlier product wrote there. Operands of 32
# rows lie as those of 0 do.
SHIFTS = range(0, 256, 32)

# A prime, so that no two rows of a weight are alike.
PERIOD = 1_000_003
# Narrower than any kernel's tile: what a wrong tile is off by is not averaged away.
BLOCK = 64

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Operands:
    """What a product takes on a device, and what comes of it."""

    product: Product
    device: int
    """Which of the devices."""
    most: int
    """With how many rows it is tried at most."""
    buffers: list[tuple[Operand, Buffer]]
    sample: slice
    """The columns of the result that are known."""
    expected: Array
    """These, by NumPy."""

    @classmethod
    def of(
        cls,
        product: Product,
        draws: Array,
        most: Sequence[int],
        dtype: DType,
        devices: Sequence[Device],
    ) -> list[Operands]:
        """Returns those of a product, on each device.

        Args:
            product: Which.
            draws: Two arrays of normal values.
            most: With how many rows it is tried at most, on each device.
            dtype: Of what is not FP8.
            devices: Which.
        """
        operands = operands_of(product, ALONE, dtype)
        raws = [
            np.resize(encode(values, operand.dtype), operand.shape)
            for operand, values in zip(operands, _values(product, draws), strict=True)
        ]
        width = product.columns // (2 if product.then == "swiglu" else 1)
        sample = slice(max(0, width - BLOCK), width)
        x, weight, *others = raws
        # Of SwiGLU, the same columns of both halves.
        halves = weight.reshape(-1, width, product.terms)[:, sample]
        first, *second = (decode(x) @ decode(half).T for half in halves)
        expected = first
        if product.then == "swiglu":
            expected = first / (1 + np.exp(-first)) * second[0]
        elif product.static:
            expected = first * np.float32(np.prod(static_scales(product)))
        elif product.fp8:
            expected = others[0][:, None] * first * others[1][sample]
        hosts = []
        longest = operands_of(product, max(most) + SHIFTS[-1], dtype)
        for operand, raw in zip(longest, raws, strict=True):
            # The same rows again; a weight is as it was.
            longer = raw if operand.is_weight else np.resize(raw, operand.shape)
            hosts.append(Buffer.from_numpy(longer).view(operand.dtype, longer.shape))
        found = []
        for i, device in enumerate(devices):
            buffers = [host.to(device) for host in hosts]
            placed = list(zip(operands, buffers, strict=True))
            found.append(cls(product, i, most[i], placed, sample, expected))
        return found

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


def decode(raw: npt.NDArray[Any]) -> Array:
    """Returns what :func:`encode` made, as float32."""
    if raw.dtype == np.float32:
        return raw
    if raw.dtype == np.uint8:
        return fp8_values()[raw]
    return (raw.astype(np.uint32) << 16).view(np.float32)
