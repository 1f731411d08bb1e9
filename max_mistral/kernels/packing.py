"""Packs weights into the layout that the kernels read (``layout.mojo``).

To add a GGUF type: give it a row in :class:`Encoding` and a function in
``_PIECES``, and do what ``layout.mojo`` says in Mojo.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt

ROWS = 16
Bytes = npt.NDArray[np.uint8]


class Encoding(enum.IntEnum):
    """How a packed weight is encoded.

    The values are the indices of ``ENCODINGS`` in ``layout.mojo``.
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
        return self.block_columns == 1


def panel_bytes(encoding: Encoding, columns: int) -> int:
    """Returns the bytes of 16 packed rows of ``columns`` weights each."""
    if encoding == Encoding.BF16:
        columns += columns % 2
    return columns // encoding.block_columns * encoding.block_bytes * ROWS


def packed_shape(encoding: Encoding, rows: int, columns: int) -> tuple[int, int]:
    """Returns the shape of the packed bytes: ``[panels, panel_bytes]``."""
    return -(-rows // ROWS), panel_bytes(encoding, columns)


def pack(weight: Bytes, encoding: Encoding, columns: int) -> Bytes:
    """Packs a weight.

    Args:
        weight: uint8 ``[rows, bytes of a row]``, as in a GGUF file.
        encoding: How the weight is encoded.
        columns: Weights in a row, a multiple of ``encoding.block_columns``.

    Returns:
        uint8 ``[panels, panel_bytes]``.
    """
    rows = weight.shape[0]
    panels, size = packed_shape(encoding, rows, columns)
    packed = np.zeros((panels, size), np.uint8)
    # A few panels at a time, so that the copies stay in the cache.
    step = max(1, 2**20 // size)
    for start in range(0, panels, step):
        part = weight[start * ROWS : (start + step) * ROWS]
        if part.shape[0] % ROWS:
            missing = ROWS - part.shape[0] % ROWS
            part = np.pad(part, ((0, missing), (0, 0)))
        _pack_panels(part, encoding, columns, packed[start : start + step])
    return packed


def _pack_panels(part: Bytes, encoding: Encoding, columns: int, out: Bytes) -> None:
    """Packs whole panels: ``part`` is ``[panels * 16, bytes of a row]``."""
    if encoding.is_dense:
        # bfloat16 columns stay in pairs.
        word = np.uint16 if encoding == Encoding.F16 else np.uint32
        if encoding == Encoding.BF16 and columns % 2:
            part = np.pad(part, ((0, 0), (0, 2)))
        lines = np.ascontiguousarray(part).view(word)
        # [panels, 16, words] -> [panels, words, 16]
        lines = lines.reshape(-1, ROWS, lines.shape[1]).swapaxes(1, 2)
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
        flat = piece.reshape(*piece.shape[:2], -1)
        target[..., at : at + flat.shape[-1]] = flat
        at += flat.shape[-1]
    assert at == target.shape[-1]


def _quads(codes: Bytes) -> Bytes:
    """Interleaves codes: ``[..., 16, 4 n]`` to ``[..., n, 16, 4]``."""
    quads = codes.reshape(*codes.shape[:-1], -1, 4)
    return quads.swapaxes(-3, -2)


def _parts(codes: Bytes, size: int) -> Bytes:
    """Cuts a block into its parts: ``[..., 16, 8 size]`` to ``[..., 8, 16, size]``."""
    return codes.reshape(*codes.shape[:-1], -1, size).swapaxes(-3, -2)


def _pieces_q8_0(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, int8 [32].
    return [blocks[..., :2], _quads(blocks[..., 2:] ^ np.uint8(0x80))]


def _pieces_q4_0(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, 16 bytes with column k low and k + 16 high.
    return [blocks[..., :2], _quads(blocks[..., 2:])]


def _pieces_q4_1(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, float16 m, nibbles as in Q4_0.
    return [blocks[..., :2], blocks[..., 2:4], _quads(blocks[..., 4:])]


def _fifth_bits(bits: Bytes) -> Bytes:
    """Interleaves fifth bits: bit k of 4 bytes to bit i of byte j, k = 4 i + j."""
    apart = np.unpackbits(bits, axis=-1, bitorder="little")
    # [..., 16, 8 (i), 4 (j)] -> [..., 16, 4]
    apart = apart.reshape(*bits.shape[:-1], 8, 4)
    return np.packbits(apart, axis=-2, bitorder="little").reshape(bits.shape)


def _pieces_q5_0(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, 32 fifth bits, nibbles as in Q4_0.
    return [blocks[..., :2], _quads(blocks[..., 6:]), _fifth_bits(blocks[..., 2:6])]


def _pieces_q5_1(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, float16 m, 32 fifth bits, nibbles as in Q4_0.
    return [
        *(blocks[..., :2], blocks[..., 2:4]),
        *(_quads(blocks[..., 8:]), _fifth_bits(blocks[..., 4:8])),
    ]


def _pieces_iq4_xs(blocks: Bytes) -> list[Bytes]:
    # In: float16 d, uint16 with upper 2 bits of 8 sub-scales, 4 bytes with their low
    # 4 bits, 128 bytes of nibbles, each part's 16 as in Q4_0.
    return [
        blocks[..., :2],
        blocks[..., 4:8].swapaxes(-1, -2),
        blocks[..., 2:4],
        _quads_of_parts(blocks[..., 8:], 16),
    ]


def _scales_k4(blocks: Bytes) -> list[Bytes]:
    """The scales of Q4_K and Q5_K: d, dmin, and 8 sub-scales and -minima of 6 bits.

    A GGUF block begins with float16 d, float16 dmin and 12 bytes with the others;
    llama.cpp reads them in ``get_scale_min_k4`` of ``ggml-quants.c``.
    """
    packed = blocks[..., 4:16]
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], -1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], -1)
    lower = np.bitwise_or(scales & 15, minima << 4, dtype="u1")
    upper = np.bitwise_or(scales >> 4, minima >> 4 << 2, dtype="u1")
    upper = np.bitwise_or(upper[..., ::2], upper[..., 1::2] << 4, dtype="u1")
    return [blocks[..., :2], blocks[..., 2:4], lower.swapaxes(-1, -2), upper]


def _nibbles_k(codes: Bytes) -> Bytes:
    """Pairs nibbles anew: GGUF's bytes hold columns c and c + 32, ours c and c + 16."""
    pairs = codes.reshape(*codes.shape[:-1], 4, 32)
    # [..., 4, 2, 32]: 64 columns as two parts of 32
    parts = np.stack([pairs & 15, pairs >> 4], -2)
    return _joined(parts).reshape(*codes.shape[:-1], 128)


def _joined(codes: Bytes) -> Bytes:
    """Joins 32 nibbles, ``[..., 32]``, to 16 bytes: column k low, k + 16 high."""
    return np.bitwise_or(codes[..., :16], np.left_shift(codes[..., 16:], 4), dtype="u1")


def _pieces_q4_k(blocks: Bytes) -> list[Bytes]:
    # In: scales, 128 bytes of nibbles.
    return [
        *_scales_k4(blocks),
        _quads_of_parts(_nibbles_k(blocks[..., 16:]), 16),
    ]


def _pieces_q5_k(blocks: Bytes) -> list[Bytes]:
    # In: scales, 32 bytes of fifth bits, 128 bytes of nibbles. Bit p of byte c
    # belongs to column c of part p.
    bits = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little")
    parts = bits.swapaxes(-1, -2)  # [..., 8, 32]
    # Out: bit i of byte j belongs to column 4 i + j.
    # [..., 8 parts, 8 (i), 4 (j)] -> [..., 8 parts, 4]
    fifth = np.packbits(
        parts.reshape(*parts.shape[:-1], 8, 4), axis=-2, bitorder="little"
    )
    return [
        *_scales_k4(blocks),
        _side_by_side(
            _quads_of_parts(_nibbles_k(blocks[..., 48:]), 16),
            _parts(fifth.reshape(*fifth.shape[:-3], 32), 4),
        ),
    ]


def _pieces_q6_k(blocks: Bytes) -> list[Bytes]:
    # In: 128 bytes of nibbles, 64 of bit pairs, 16 int8 sub-scales, float16 d. Each
    # 128 columns have 64 bytes of nibbles, with column c low and c + 64 high, and
    # 32 bytes of bit pairs, where pair p of byte c belongs to column 32 p + c.
    low, pairs = blocks[..., :128], blocks[..., 128:192]
    low = low.reshape(*low.shape[:-1], 2, 64)
    low = np.stack([low & 15, low >> 4], -2).reshape(*low.shape[:-2], 8, 32)
    low = _joined(low)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    apart = (
        pairs.reshape(*pairs.shape[:-1], 2, 1, 32) >> shifts & np.uint8(3)
    ).reshape(*low.shape[:-2], 8, 2, 4, 4)
    # Out: pair i of byte j of line h belongs to column 16 h + 4 i + j.
    lines = np.bitwise_or.reduce(apart << shifts, axis=-2)
    # [..., 16, 8, 2, 4] -> [..., 8, 2, 16, 4]
    lines = np.moveaxis(lines, -4, -2)
    return [
        blocks[..., 208:],
        blocks[..., 192:208].swapaxes(-1, -2),
        _side_by_side(_quads_of_parts(low.reshape(*low.shape[:-2], 128), 16), lines),
    ]


def _quads_of_parts(codes: Bytes, size: int) -> Bytes:
    """Interleaves each part: ``[..., 16, 8 size]`` to ``[..., 8, size / 4, 16, 4]``."""
    return _quads(_parts(codes, size))


def _side_by_side(*pieces: Bytes) -> Bytes:
    """Joins pieces, ``[panels, blocks, 8, ...]`` each, part by part."""
    flat = [piece.reshape(*piece.shape[:3], -1) for piece in pieces]
    return np.concatenate(flat, -1)


# What a packed block consists of, in order, from GGUF blocks: uint8
# ``[panels, blocks, 16, block_bytes]``.
_PIECES: dict[Encoding, Callable[[Bytes], list[Bytes]]] = {
    Encoding.Q8_0: _pieces_q8_0,
    Encoding.Q4_0: _pieces_q4_0,
    Encoding.Q4_1: _pieces_q4_1,
    Encoding.Q4_K: _pieces_q4_k,
    Encoding.Q5_K: _pieces_q5_k,
    Encoding.Q6_K: _pieces_q6_k,
    Encoding.Q5_0: _pieces_q5_0,
    Encoding.Q5_1: _pieces_q5_1,
    Encoding.IQ4_NL: _pieces_q4_0,
    Encoding.IQ4_XS: _pieces_iq4_xs,
}
