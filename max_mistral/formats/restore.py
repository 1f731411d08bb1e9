"""FP8 weights in bfloat16, for a CPU, which has no products of FP8."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def fp8_values() -> Floats:
    """Returns what each of the 256 codes of ``float8_e4m3fn`` stands for.

    Micikevicius et al., "FP8 Formats for Deep Learning",
    https://arxiv.org/abs/2209.05433, table 1: a sign, 4 bits of an exponent whose bias
    is 7, 3 bits of a mantissa; no infinities, and NaN with all bits set.
    """
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    normal = (8 + mantissas) * 2.0 ** (exponents - 10)
    values = np.where(exponents == 0, mantissas * 2.0**-9, normal)
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


def to_bfloat16(values: Floats) -> Bits:
    """Returns the bits of the nearest bfloat16 numbers, ties to even. Keeps NaN."""
    return quantize(values, GGMLQuantizationType.BF16).view(np.uint16)


def restore(codes: Bytes, scales: Floats, height: int, width: int) -> Bits:
    """Returns ``code * scale`` in bfloat16, bits ``[rows, columns]``.

    Args:
        codes: uint8 ``[rows, columns]``, the bytes of ``float8_e4m3fn``.
        scales: One for each ``height`` rows and ``width`` columns,
            ``[ceil(rows / height), ceil(columns / width)]``.
        height: Rows under one scale.
        width: Columns under one scale.
    """
    restored = np.empty(codes.shape, np.uint16)
    with np.errstate(over="ignore"):  # infinity, which is found later
        tables = to_bfloat16(scales[..., None] * fp8_values())
    for i, line in enumerate(tables):
        rows = slice(i * height, (i + 1) * height)
        for j, table in enumerate(line):
            columns = slice(j * width, (j + 1) * width)
            restored[rows, columns] = table[codes[rows, columns]]
    return restored
