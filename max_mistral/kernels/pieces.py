"""How the blocks of each GGUF type become the pieces that ``layout.mojo`` describes.

Each function takes GGUF blocks, uint8 ``[panels, blocks, 16, block_bytes]``, and
returns what a packed block consists of, in order: arrays ``[panels, blocks, ...]``.

Codes are handled as words of four columns, ``[words, panels, blocks, 16]``: the long
axes are the last ones, so that NumPy is fast. Shifts move bits within a byte only
where a mask takes away what crosses to the next.
"""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Piece = npt.NDArray[np.uint8 | np.uint32]

_SIX, _NIBBLES, _PAIRS, _BITS = (
    np.uint32(byte * 0x01010101) for byte in (0b111111, 0b1111, 0b11, 0b1)
)


def _words(codes: Bytes, *shape: int) -> Words:
    """Returns ``[panels, blocks, 16, 4 n]`` as ``[*shape, panels, blocks, 16]``."""
    words = np.ascontiguousarray(codes).view("<u4")
    words = np.ascontiguousarray(np.moveaxis(words, -1, 0))
    return words.reshape(*shape, *words.shape[1:])


def _lines(words: Piece) -> Piece:
    """Returns ``[..., panels, blocks, 16]`` as ``[panels, blocks, n, 16]``."""
    return np.moveaxis(words.reshape(-1, *words.shape[-3:]), 0, 2)


def q8_0(blocks: Bytes) -> list[Piece]:
    """Cuts Q8_0's blocks."""
    # In: float16 d, int8 [32].
    words = _words(blocks[..., 2:], 8) ^ np.uint32(0x80808080)
    return [blocks[..., :2], _lines(words)]


def q4_0(blocks: Bytes) -> list[Piece]:
    """Cuts Q4_0's blocks and IQ4_NL's."""
    # In: float16 d, 16 bytes with column k low and k + 16 high.
    return [blocks[..., :2], _lines(_words(blocks[..., 2:], 4))]


def q4_1(blocks: Bytes) -> list[Piece]:
    """Cuts Q4_1's blocks."""
    # In: float16 d, float16 m, nibbles as in Q4_0.
    codes = _lines(_words(blocks[..., 4:], 4))
    return [blocks[..., :2], blocks[..., 2:4], codes]


def _fifth_bits(bits: Bytes) -> Bytes:
    """Interleaves fifth bits: bit k of 4 bytes to bit i of byte j, k = 4 i + j."""
    apart = np.unpackbits(bits, axis=-1, bitorder="little")
    # [..., 16, 8 (i), 4 (j)] -> [..., 16, 4]
    apart = apart.reshape(*bits.shape[:-1], 8, 4)
    return np.packbits(apart, axis=-2, bitorder="little").reshape(bits.shape)


def q5_0(blocks: Bytes) -> list[Piece]:
    """Cuts Q5_0's blocks."""
    # In: float16 d, 32 fifth bits, nibbles as in Q4_0.
    codes = _lines(_words(blocks[..., 6:], 4))
    return [blocks[..., :2], codes, _fifth_bits(blocks[..., 2:6])]


def q5_1(blocks: Bytes) -> list[Piece]:
    """Cuts Q5_1's blocks."""
    # In: float16 d, float16 m, 32 fifth bits, nibbles as in Q4_0.
    codes = _lines(_words(blocks[..., 8:], 4))
    fifth = _fifth_bits(blocks[..., 4:8])
    return [blocks[..., :2], blocks[..., 2:4], codes, fifth]


def iq4_xs(blocks: Bytes) -> list[Piece]:
    """Cuts IQ4_XS's blocks."""
    # In: float16 d, uint16 with upper 2 bits of 8 sub-scales, 4 bytes with their low
    # 4 bits, 128 bytes of nibbles, each part's 16 as in Q4_0.
    return [
        blocks[..., :2],
        blocks[..., 4:8].swapaxes(-1, -2),
        blocks[..., 2:4],
        _lines(_words(blocks[..., 8:], 32)),
    ]


def _scales_k4(blocks: Bytes) -> list[Piece]:
    """The scales of Q4_K and Q5_K: d, dmin, and 8 sub-scales and -minima of 6 bits.

    A GGUF block begins with float16 d, float16 dmin and 12 bytes with the others;
    llama.cpp reads them in ``get_scale_min_k4`` of ``ggml-quants.c``.
    """
    low, middle, high = _words(blocks[..., 4:16], 3)
    upper = [each >> 6 & _PAIRS for each in (low, middle)]
    # Sub-scales, sub-minima: of parts 0 to 3, a byte each, and of parts 4 to 7.
    scales = [low & _SIX, high & _NIBBLES | upper[0] << 4]
    minima = [middle & _SIX, high >> 4 & _NIBBLES | upper[1] << 4]
    lower: list[Words] = []
    above = np.zeros_like(low)
    for half, (scale, minimum) in enumerate(zip(scales, minima, strict=True)):
        lower.append(scale & _NIBBLES | (minimum & _NIBBLES) << 4)
        four = scale >> 4 & _PAIRS | (minimum >> 4 & _PAIRS) << 2
        above |= four << 4 * half
    lines = [
        (word >> 8 * part).astype(np.uint8)
        for word in (*lower, above)
        for part in range(4)
    ]
    return [blocks[..., :2], blocks[..., 2:4], _lines(np.stack(lines))]


def _nibbles(words: Words, axis: int) -> Words:
    """Pairs nibbles anew: column k low and k + 16 high of each 32 columns.

    Args:
        words: ``[..., 2, 4, panels, blocks, 16]``, columns 0 to 15 and 16 to 31 of
            two parts, one in the low nibbles, one in the high ones.
        axis: Where the axis of those two is to be.
    """
    first, second = words[..., 0, :, :, :, :], words[..., 1, :, :, :, :]
    low = first & _NIBBLES | (second & _NIBBLES) << 4
    high = first >> 4 & _NIBBLES | second & ~_NIBBLES
    return np.stack([low, high], axis)


def _nibbles_k4(codes: Bytes) -> Words:
    """The nibbles of Q4_K and Q5_K, ``[8 parts, 4 lines, panels, blocks, 16]``.

    In: each 64 columns have 32 bytes, with column c low and c + 32 high.
    """
    words = _nibbles(_words(codes, 4, 2, 4), axis=1)
    return words.reshape(8, 4, *words.shape[-3:])


def q4_k(blocks: Bytes) -> list[Piece]:
    """Cuts Q4_K's blocks."""
    # In: scales, 128 bytes of nibbles.
    return [*_scales_k4(blocks), _lines(_nibbles_k4(blocks[..., 16:]))]


def q5_k(blocks: Bytes) -> list[Piece]:
    """Cuts Q5_K's blocks."""
    # In: scales, 32 bytes of fifth bits, 128 bytes of nibbles.
    nibbles = _nibbles_k4(blocks[..., 48:])
    bits = _bits_of_parts(blocks[..., 16:48])
    return [*_scales_k4(blocks), _lines(np.concatenate([nibbles, bits], 1))]


def _bits_of_parts(bits: Bytes) -> Words:
    """Interleaves one bit of each code, ``[8 parts, 1 line, panels, blocks, 16]``.

    In: bit p of byte c belongs to column c of part p. Out: bit i of byte j belongs to
    column 4 i + j of its part.
    """
    words = _words(bits, 8)
    return np.stack([_gathered(words, p, _BITS, 1) for p in range(8)])[:, None]


def _pairs_of_parts(pairs: Bytes) -> Words:
    """Interleaves two bits of each code, ``[8 parts, 2 lines, panels, blocks, 16]``.

    In: each 128 columns have 32 bytes, where pair p of byte c belongs to column
    32 p + c. Out: pair i of byte j of line h belongs to column 16 h + 4 i + j.
    """
    words = _words(pairs, 2, 2, 4)  # [128 columns, line, i, ...]
    words = np.moveaxis(words, 2, 0)
    stacked = np.stack([_gathered(words, 2 * p, _PAIRS, 2) for p in range(4)], 1)
    return stacked.reshape(8, 2, *stacked.shape[-3:])


def _gathered(words: Words, at: int, mask: np.uint32, width: int) -> Words:
    """Joins ``width`` bits of each byte of ``[n, ...]`` words, the first's lowest."""
    result = np.zeros_like(words[0])
    for i, word in enumerate(words):
        result |= (word >> np.uint32(at) & mask) << np.uint32(i * width)
    return result


def q6_k(blocks: Bytes) -> list[Piece]:
    """Cuts Q6_K's blocks."""
    # In: 128 bytes of nibbles, 64 of bit pairs, 16 int8 sub-scales, float16 d. Each
    # 128 columns have 64 bytes of nibbles, with column c low and c + 64 high.
    nibbles = _nibbles(_words(blocks[..., :128], 2, 2, 2, 4), axis=1)
    nibbles = nibbles.reshape(8, 4, *nibbles.shape[-3:])
    pairs = _pairs_of_parts(blocks[..., 128:192])
    return [
        blocks[..., 208:],
        blocks[..., 192:208].swapaxes(-1, -2),
        _lines(_six_bit_lines(nibbles, pairs)),
    ]


def _six_bit_lines(nibbles: Words, pairs: Words) -> Words:
    """Joins codes of 6 bits, ``[8 parts, 6 lines, panels, blocks, 16]``.

    Three lines hold 16 columns.

    Args:
        nibbles: Their lower bits, ``[8, 4, ...]``: of line i, column 4 i + j low in
            byte j and 16 + 4 i + j high.
        pairs: Their upper bits, as :func:`_pairs_of_parts` returns them.
    """
    lines = []
    for half in range(2):
        lower = nibbles >> np.uint32(4 * half) & _NIBBLES
        codes = [
            lower[:, i] | (pairs[:, half] >> np.uint32(2 * i) & _PAIRS) << 4
            for i in range(4)
        ]
        lines += [
            codes[i] | (codes[3] >> np.uint32(2 * i) & _PAIRS) << 6 for i in range(3)
        ]
    return np.stack(lines, 1)


def q3_k(blocks: Bytes) -> list[Piece]:
    """Cuts Q3_K's blocks."""
    # In: 32 bytes of third bits, 64 of bit pairs, 12 of sub-scales, float16 d. Of
    # the sub-scales' low 4 bits byte b has those of b and b + 8; of their upper 2 bits
    # byte 8 + b has those of b, b + 4, b + 8 and b + 12.
    packed = blocks[..., 96:108]
    low = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], -1)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    upper = packed[..., None, 8:] >> shifts[:, None] & np.uint8(3)
    pairs = _pairs_of_parts(blocks[..., 32:96])
    bits = _bits_of_parts(blocks[..., :32])
    return [
        blocks[..., 108:],
        np.bitwise_or(low[..., ::2], low[..., 1::2] << 4, dtype="u1").swapaxes(-1, -2),
        np.bitwise_or.reduce(upper << shifts, axis=-1),
        _lines(np.concatenate([pairs, bits], 1)),
    ]


def q2_k(blocks: Bytes) -> list[Piece]:
    """Cuts Q2_K's blocks."""
    # In: 16 bytes with a sub-scale low and a sub-minimum high, 64 bytes of bit pairs,
    # float16 d, float16 m.
    return [
        *(blocks[..., 80:82], blocks[..., 82:84], blocks[..., :16].swapaxes(-1, -2)),
        _lines(_pairs_of_parts(blocks[..., 16:80])),
    ]


def tq2_0(blocks: Bytes) -> list[Piece]:
    """Cuts TQ2_0's blocks."""
    # In: 64 bytes of bit pairs, float16 d.
    return [blocks[..., 64:], _lines(_pairs_of_parts(blocks[..., :64]))]
