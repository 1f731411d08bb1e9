"""How the blocks of each GGUF type become the pieces that ``layout.mojo`` describes.

Each function takes GGUF blocks, uint8 ``[panels, blocks, 16, block_bytes]``, and
returns what a packed block consists of, in order.
"""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def _quads(codes: Bytes) -> Bytes:
    """Interleaves codes: ``[..., 16, 4 n]`` to ``[..., n, 16, 4]``."""
    quads = codes.reshape(*codes.shape[:-1], -1, 4)
    return quads.swapaxes(-3, -2)


def _parts(codes: Bytes, size: int) -> Bytes:
    """Cuts a block into its parts: ``[..., 16, 8 size]`` to ``[..., 8, 16, size]``."""
    return codes.reshape(*codes.shape[:-1], -1, size).swapaxes(-3, -2)


def q8_0(blocks: Bytes) -> list[Bytes]:
    """Cuts Q8_0's blocks."""
    # In: float16 d, int8 [32].
    return [blocks[..., :2], _quads(blocks[..., 2:] ^ np.uint8(0x80))]


def q4_0(blocks: Bytes) -> list[Bytes]:
    """Cuts Q4_0's blocks and IQ4_NL's."""
    # In: float16 d, 16 bytes with column k low and k + 16 high.
    return [blocks[..., :2], _quads(blocks[..., 2:])]


def q4_1(blocks: Bytes) -> list[Bytes]:
    """Cuts Q4_1's blocks."""
    # In: float16 d, float16 m, nibbles as in Q4_0.
    return [blocks[..., :2], blocks[..., 2:4], _quads(blocks[..., 4:])]


def _fifth_bits(bits: Bytes) -> Bytes:
    """Interleaves fifth bits: bit k of 4 bytes to bit i of byte j, k = 4 i + j."""
    apart = np.unpackbits(bits, axis=-1, bitorder="little")
    # [..., 16, 8 (i), 4 (j)] -> [..., 16, 4]
    apart = apart.reshape(*bits.shape[:-1], 8, 4)
    return np.packbits(apart, axis=-2, bitorder="little").reshape(bits.shape)


def q5_0(blocks: Bytes) -> list[Bytes]:
    """Cuts Q5_0's blocks."""
    # In: float16 d, 32 fifth bits, nibbles as in Q4_0.
    return [blocks[..., :2], _quads(blocks[..., 6:]), _fifth_bits(blocks[..., 2:6])]


def q5_1(blocks: Bytes) -> list[Bytes]:
    """Cuts Q5_1's blocks."""
    # In: float16 d, float16 m, 32 fifth bits, nibbles as in Q4_0.
    return [
        *(blocks[..., :2], blocks[..., 2:4]),
        *(_quads(blocks[..., 8:]), _fifth_bits(blocks[..., 4:8])),
    ]


def iq4_xs(blocks: Bytes) -> list[Bytes]:
    """Cuts IQ4_XS's blocks."""
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


def q4_k(blocks: Bytes) -> list[Bytes]:
    """Cuts Q4_K's blocks."""
    # In: scales, 128 bytes of nibbles.
    return [
        *_scales_k4(blocks),
        _quads_of_parts(_nibbles_k(blocks[..., 16:]), 16),
    ]


def q5_k(blocks: Bytes) -> list[Bytes]:
    """Cuts Q5_K's blocks."""
    # In: scales, 32 bytes of fifth bits, 128 bytes of nibbles.
    return [
        *_scales_k4(blocks),
        _side_by_side(
            _quads_of_parts(_nibbles_k(blocks[..., 48:]), 16),
            _bits_of_parts(blocks[..., 16:48]),
        ),
    ]


def _bits_of_parts(bits: Bytes) -> Bytes:
    """Interleaves one bit of each code: ``[..., 16, 32]`` to ``[..., 8, 16, 4]``.

    In: bit p of byte c belongs to column c of part p. Out: bit i of byte j belongs to
    column 4 i + j of its part.
    """
    apart = np.unpackbits(bits[..., None], axis=-1, bitorder="little")
    parts = apart.swapaxes(-1, -2)  # [..., 8, 32]
    # [..., 8 parts, 8 (i), 4 (j)] -> [..., 8 parts, 4]
    packed = np.packbits(
        parts.reshape(*parts.shape[:-1], 8, 4), axis=-2, bitorder="little"
    )
    return _parts(packed.reshape(*bits.shape), 4)


def _pairs_of_parts(pairs: Bytes) -> Bytes:
    """Interleaves two bits of each code: ``[..., 16, 64]`` to ``[..., 8, 2, 16, 4]``.

    In: each 128 columns have 32 bytes, where pair p of byte c belongs to column
    32 p + c. Out: pair i of byte j of line h belongs to column 16 h + 4 i + j.
    """
    apart = pairs.reshape(*pairs.shape[:-1], 2, 1, 32) >> _PAIRS & np.uint8(3)
    apart = apart.reshape(*pairs.shape[:-1], 8, 2, 4, 4)
    lines = np.bitwise_or.reduce(apart << _PAIRS, axis=-2)
    # [..., 16, 8, 2, 4] -> [..., 8, 2, 16, 4]
    return np.moveaxis(lines, -4, -2)


# Where the pairs of bits in a byte are.
_PAIRS = np.arange(0, 8, 2, dtype=np.uint8)[:, None]


def q6_k(blocks: Bytes) -> list[Bytes]:
    """Cuts Q6_K's blocks."""
    # In: 128 bytes of nibbles, 64 of bit pairs, 16 int8 sub-scales, float16 d. Each
    # 128 columns have 64 bytes of nibbles, with column c low and c + 64 high.
    low = blocks[..., :128]
    low = low.reshape(*low.shape[:-1], 2, 64)
    low = np.stack([low & 15, low >> 4], -2).reshape(*low.shape[:-2], 8, 32)
    low = _joined(low)
    return [
        blocks[..., 208:],
        blocks[..., 192:208].swapaxes(-1, -2),
        _side_by_side(
            _quads_of_parts(low.reshape(*low.shape[:-2], 128), 16),
            _pairs_of_parts(blocks[..., 128:192]),
        ),
    ]


def q3_k(blocks: Bytes) -> list[Bytes]:
    """Cuts Q3_K's blocks."""
    # In: 32 bytes of third bits, 64 of bit pairs, 12 of sub-scales, float16 d. Of
    # the sub-scales' low 4 bits byte b has those of b and b + 8; of their upper 2 bits
    # byte 8 + b has those of b, b + 4, b + 8 and b + 12.
    packed = blocks[..., 96:108]
    low = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], -1)
    upper = packed[..., None, 8:] >> _PAIRS & np.uint8(3)
    return [
        blocks[..., 108:],
        np.bitwise_or(low[..., ::2], low[..., 1::2] << 4, dtype="u1").swapaxes(-1, -2),
        np.bitwise_or.reduce(upper << _PAIRS[:, 0], axis=-1),
        _side_by_side(
            _pairs_of_parts(blocks[..., 32:96]), _bits_of_parts(blocks[..., :32])
        ),
    ]


def q2_k(blocks: Bytes) -> list[Bytes]:
    """Cuts Q2_K's blocks."""
    # In: 16 bytes with a sub-scale low and a sub-minimum high, 64 bytes of bit pairs,
    # float16 d, float16 m.
    return [
        *(blocks[..., 80:82], blocks[..., 82:84], blocks[..., :16].swapaxes(-1, -2)),
        _pairs_of_parts(blocks[..., 16:80]),
    ]


def tq2_0(blocks: Bytes) -> list[Bytes]:
    """Cuts TQ2_0's blocks."""
    # In: 64 bytes of bit pairs, float16 d.
    return [blocks[..., 64:], _pairs_of_parts(blocks[..., :64])]


def _quads_of_parts(codes: Bytes, size: int) -> Bytes:
    """Interleaves each part: ``[..., 16, 8 size]`` to ``[..., 8, size / 4, 16, 4]``."""
    return _quads(_parts(codes, size))


def _side_by_side(*pieces: Bytes) -> Bytes:
    """Joins pieces, ``[panels, blocks, 8, ...]`` each, part by part."""
    flat = [piece.reshape(*piece.shape[:3], -1) for piece in pieces]
    return np.concatenate(flat, -1)
