"""Packs weights into the layout that the kernels read (``layout.mojo``).

To add a GGUF type: give it a row in :class:`Encoding` and in ``_PIECES``,
and do what ``layout.mojo`` says in Mojo. ``narrow.py`` packs bfloat16 in 12 bits.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

from . import pieces
from .narrow import beside_groups, narrow
from .pieces import Bytes, Piece

ROWS = 16

# Words this far apart share a set of a first-level cache, which holds 8 or 12 of
# them: 16 rows of such a length would push each other out.
_SAME_CACHE_SET = 4096
_CACHE_LINE = 64


class Encoding(enum.IntEnum):
    """How a packed weight is encoded.

    The values are the indices of ``ENCODINGS`` in ``encodings.mojo``.
    """

    # Value; of one row's block in a GGUF file: columns, bytes, and where its float16
    # numbers are (scale and minimum); llama.cpp's ``ggml-common.h``.
    F32 = 0, 1, 4
    BF16 = 1, 1, 2
    F16 = 2, 1, 2
    Q8_0 = 3, 32, 34, 0
    Q4_0 = 4, 32, 18, 0
    Q4_1 = 5, 32, 20, 0, 2
    Q4_K = 6, 256, 144, 0, 2
    Q5_K = 7, 256, 176, 0, 2
    Q6_K = 8, 256, 210, 208
    Q5_0 = 9, 32, 22, 0
    Q5_1 = 10, 32, 24, 0, 2
    IQ4_NL = 11, 32, 18, 0
    IQ4_XS = 12, 256, 136, 0
    Q2_K = 13, 256, 84, 80, 82
    Q3_K = 14, 256, 110, 108
    TQ2_0 = 15, 256, 66, 64
    # No types of GGUF: blocks of one, whose codes stand for what those of others do;
    # see ``weights/gguf_encode.py``.
    IQ2_IN_Q3_K = 16, 256, 110, 108
    IQ3_XXS_IN_IQ4_XS = 17, 256, 136, 0
    IQ3_S_IN_IQ4_XS = 18, 256, 136, 0
    # bfloat16 without loss, where it can be; see ``narrow.mojo``. Its blocks are not
    # all that there is of a panel.
    BF16_IN_12_BITS = 19, 8, 12

    block_columns: int
    block_bytes: int
    scales_at: tuple[int, ...]

    def __new__(
        cls, value: int, block_columns: int, block_bytes: int, *scales_at: int
    ) -> Self:
        """Makes a row of the table."""
        self = int.__new__(cls, value)
        self._value_ = value
        self.block_columns = block_columns
        self.block_bytes = block_bytes
        self.scales_at = scales_at
        return self

    @property
    def is_dense(self) -> bool:
        """Whether a weight is a floating-point number, not a code."""
        return not self.scales_at

    @property
    def is_bfloat16(self) -> bool:
        """Whether a weight is a bfloat16, in 16 bits or 12."""
        return self in (Encoding.BF16, Encoding.BF16_IN_12_BITS)


def panel_bytes(encoding: Encoding, columns: int) -> int:
    """Returns the bytes of 16 packed rows of ``columns`` weights each."""
    beside = 0
    if encoding == Encoding.BF16:
        columns += columns % 2
    elif encoding == Encoding.BF16_IN_12_BITS:
        beside = beside_groups(columns)
    return columns // encoding.block_columns * encoding.block_bytes * ROWS + beside


def packed_shape(encoding: Encoding, rows: int, columns: int) -> tuple[int, int]:
    """Returns the shape of the packed bytes: ``[panels, panel_bytes]``."""
    return -(-rows // ROWS), panel_bytes(encoding, columns)


def pack(weight: Bytes, encoding: Encoding, columns: int) -> Bytes:
    """Packs a weight.

    Args:
        weight: uint8 ``[rows, bytes of a row]``, as in a GGUF file; of
            ``BF16_IN_12_BITS`` bfloat16.
        encoding: How the weight is encoded.
        columns: Weights in a row, a multiple of ``encoding.block_columns``.

    Returns:
        uint8 ``[panels, panel_bytes]``.

    Raises:
        TooManyExponentsError: If the weight cannot be ``BF16_IN_12_BITS``.
    """
    return pack_rows(
        lambda start, end: weight[start:end], len(weight), encoding, columns
    )


def pack_rows(
    some_rows: Callable[[int, int], Bytes], rows: int, encoding: Encoding, columns: int
) -> Bytes:
    """Packs a weight as :func:`pack` does, which is fetched some rows at a time.

    Args:
        some_rows: Returns rows from the first up to the second number. Called by
            several threads.
        rows: How many there are.
        encoding: How the weight is encoded.
        columns: Weights in a row, a multiple of ``encoding.block_columns``.

    Returns:
        As :func:`pack`, which raises the same.
    """
    panels, size = packed_shape(encoding, rows, columns)
    packed = np.zeros((panels, size), np.uint8)
    # A few panels at a time, so that the copies stay in the cache.
    step = max(1, 2**20 // size)

    def pack_some(start: int) -> None:
        part = some_rows(start * ROWS, min((start + step) * ROWS, rows))
        if part.shape[0] % ROWS:
            missing = ROWS - part.shape[0] % ROWS
            # With what is there already, so no other exponents.
            part = np.pad(part, ((0, missing), (0, 0)), "edge")
        _pack_panels(part, encoding, columns, packed[start : start + step])

    # NumPy lets other threads run. Memory is the limit for more than a few.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(pack_some, range(0, panels, step)):
            pass  # or raises
    return packed


def _pack_panels(part: Bytes, encoding: Encoding, columns: int, out: Bytes) -> None:
    """Packs whole panels: ``part`` is ``[panels * 16, bytes of a row]``."""
    if encoding == Encoding.BF16_IN_12_BITS:
        narrow(part, columns, out)
        return
    if encoding.is_dense:
        # bfloat16 columns stay in pairs.
        word = np.uint16 if encoding == Encoding.F16 else np.uint32
        more = part.shape[1] % np.dtype(word).itemsize
        if part.shape[1] % _SAME_CACHE_SET == 0:
            more = _CACHE_LINE
        if more:
            part = np.pad(part, ((0, 0), (0, more)))
        words = out.shape[1] // ROWS // np.dtype(word).itemsize
        # [panels * 16, words] -> [panels, 16, words] -> [panels, words, 16]
        lines = np.ascontiguousarray(part).view(word)
        lines = lines.reshape(-1, ROWS, lines.shape[1])[..., :words].swapaxes(1, 2)
        out.view(word).reshape(lines.shape)[...] = lines
        return
    # [panels, 16, blocks, bytes] -> [panels, blocks, 16, bytes]
    blocks = part.reshape(
        -1, ROWS, columns // encoding.block_columns, encoding.block_bytes
    )
    blocks = blocks.swapaxes(1, 2)
    target = out.reshape(*blocks.shape[:2], -1)
    at = 0
    for piece in _PIECES[encoding](blocks):
        size = piece.nbytes // (blocks.shape[0] * blocks.shape[1])
        place = target[..., at : at + size].view(piece.dtype)
        place.reshape(piece.shape)[...] = piece
        at += size
    assert at == target.shape[-1]


_PIECES: dict[Encoding, Callable[[Bytes], list[Piece]]] = {
    Encoding.Q8_0: pieces.q8_0,
    Encoding.Q4_0: pieces.q4_0,
    Encoding.Q4_1: pieces.q4_1,
    Encoding.Q4_K: pieces.q4_k,
    Encoding.Q5_K: pieces.q5_k,
    Encoding.Q6_K: pieces.q6_k,
    Encoding.Q5_0: pieces.q5_0,
    Encoding.Q5_1: pieces.q5_1,
    Encoding.IQ4_NL: pieces.q4_0,
    Encoding.IQ4_XS: pieces.iq4_xs,
    Encoding.Q2_K: pieces.q2_k,
    Encoding.Q3_K: pieces.q3_k,
    Encoding.TQ2_0: pieces.tq2_0,
    Encoding.IQ2_IN_Q3_K: pieces.q3_k,
    Encoding.IQ3_XXS_IN_IQ4_XS: pieces.iq4_xs,
    Encoding.IQ3_S_IN_IQ4_XS: pieces.iq4_xs,
}
