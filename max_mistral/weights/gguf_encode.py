"""What a GGUF tensor's bytes become for the CPU kernels, and as float32.

A type without a kernel is encoded anew, in the smallest encoding that loses nothing:

  ===========================  ===================  ===============
  in the file                  in memory            bits a weight
  ===========================  ===================  ===============
  TQ1_0 (1.69)                 TQ2_0                2.06
  IQ2_XXS, IQ2_XS, IQ2_S       IQ2_IN_Q3_K          3.44
  (2.06, 2.31, 2.56)
  IQ3_XXS (3.06)               IQ3_XXS_IN_IQ4_XS    4.25
  IQ3_S (3.44)                 IQ3_S_IN_IQ4_XS      4.25
  all others                   F16                  16
  ===========================  ===================  ===============

The ``gguf`` package dequantizes every type with NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ..errors import UserError
from ..kernels.packing import Encoding
from .stored import Stored

Bytes = npt.NDArray[np.uint8]

# Weights that are encoded anew in one go.
_STEP = 2**22
_ONE = np.array([1], np.float16).view(np.uint8)


def encoding_of(ggml_type: GGMLQuantizationType) -> Encoding:
    """Returns the encoding that a matrix of a type has, or gets.

    Types that have no other one become float16, whose rounding (2^-11) is far below
    their own.
    """
    if ggml_type.name in Encoding.__members__:
        return Encoding[ggml_type.name]
    return _ENCODERS[ggml_type][0] if ggml_type in _ENCODERS else Encoding.F16


def encode(
    stored: Stored,
    ggml_type: GGMLQuantizationType,
    shape: tuple[int, ...],
    what: str = "A tensor",
) -> Bytes:
    """Returns the bytes of a matrix in the encoding of :func:`encoding_of`.

    Args:
        stored: Where its bytes are.
        ggml_type: What they are; a type without a kernel.
        shape: ``(rows, columns)``.
        what: What to call it in a message.

    Raises:
        UserError: (a ``ValueError``) if the ``gguf`` package cannot read the type.
    """
    data = stored.read()
    if ggml_type in _ENCODERS:
        encoding, encode_blocks = _ENCODERS[ggml_type]
        columns, size = GGML_QUANT_SIZES[ggml_type]
        blocks = data.reshape(-1, size)
        encoded = np.empty((len(blocks), encoding.block_bytes), np.uint8)
        step = _STEP // columns
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            encoded[part] = encode_blocks(blocks[part])
        return encoded.reshape(-1)
    values = dequantize_rows(data, ggml_type, shape, what)
    return values.astype(np.float16).view(np.uint8)


def dequantize_rows(
    data: Bytes,
    ggml_type: GGMLQuantizationType,
    shape: tuple[int, ...],
    what: str = "A tensor",
) -> npt.NDArray[np.float32]:
    """Returns a tensor's bytes as float32 of ``shape``.

    Raises:
        UserError: (a ``ValueError``) about ``what``, if the ``gguf`` package cannot
            read the type.
    """
    try:
        return dequantize(data.reshape(*shape[:-1], -1), ggml_type).reshape(shape)
    except NotImplementedError as error:
        raise UserError(
            f"{what} is of type {ggml_type.name}, which the gguf package cannot "
            "decode. Update gguf, or take a file in Q4_K_M."
        ) from error


def _without_scale(
    blocks: Bytes, ggml_type: GGMLQuantizationType, scale_at: int
) -> npt.NDArray[np.float32]:
    """Returns what blocks would be if their float16 scale were 1."""
    ones = blocks.copy()
    ones[:, scale_at : scale_at + 2] = _ONE
    return dequantize(ones, ggml_type)


def _tq2_0(blocks: Bytes) -> Bytes:
    """Makes blocks of TQ2_0 from TQ1_0's: 52 bytes of codes, float16 d."""
    weights = _without_scale(blocks, GGMLQuantizationType.TQ1_0, 52)
    return np.concatenate([_pairs((weights + 1).astype(np.uint8)), blocks[:, 52:]], 1)


@dataclass(frozen=True)
class _Grid:
    """A type whose weights are ``d * unit * (2 s + 1) * number``.

    Blocks of 256 begin with float16 d; s is a sub-scale of 4 bits.
    """

    ggml_type: GGMLQuantizationType
    numbers: tuple[int, ...]
    """In the type's grid, without their signs."""
    unit: float
    sub_scales: Callable[[Bytes], Bytes]
    """From blocks, uint8 ``[blocks, bytes]``, to s, uint8 ``[blocks, sub-scales]``."""

    def codes(self, blocks: Bytes) -> tuple[Bytes, Bytes]:
        """Returns codes, ``[blocks, 256]``, and sub-scales plus 32, of 6 bits.

        A code is a number's place among the numbers with either sign, from the
        least on, as the tables in ``encodings.mojo`` have them.
        """
        factors = 2 * self.sub_scales(blocks) + 1
        weights = _without_scale(blocks, self.ggml_type, 0)
        weights = weights.reshape(*factors.shape, -1)
        numbers = weights / (factors[..., None] * np.float32(self.unit))
        signed = sorted([*self.numbers, *(-number for number in self.numbers)])
        places = np.zeros(128, np.uint8)
        places[np.array(signed) + 64] = np.arange(len(signed))
        codes = places[numbers.astype(np.int8) + 64]
        return codes.reshape(len(blocks), -1), factors + np.uint8(32)

    def in_q3_k(self, blocks: Bytes) -> Bytes:
        """Makes blocks of Q3_K, which ``pieces.q3_k`` reads."""
        codes, scales = self.codes(blocks)
        if scales.shape[1] == 8:
            scales = scales.repeat(2, axis=1)
        third = np.packbits(codes.reshape(-1, 8, 32) >> 2, axis=1, bitorder="little")
        low, upper = scales & 15, (scales >> 4).reshape(-1, 4, 4)
        return np.concatenate(
            [
                third.reshape(len(blocks), 32),
                _pairs(np.bitwise_and(codes, 3, dtype="u1")),
                low[:, :8] | low[:, 8:] << 4,
                np.bitwise_or.reduce(upper << _PAIRS, axis=1),
                blocks[:, :2],
            ],
            axis=1,
            dtype=np.uint8,
        )

    def in_iq4_xs(self, blocks: Bytes) -> Bytes:
        """Makes blocks of IQ4_XS, which ``pieces.iq4_xs`` reads."""
        codes, scales = self.codes(blocks)
        low, upper = scales & 15, (scales >> 4).reshape(-1, 2, 4)
        halves = codes.reshape(-1, 8, 2, 16)
        nibbles = halves[:, :, 0] | halves[:, :, 1] << 4
        return np.concatenate(
            [
                blocks[:, :2],
                np.bitwise_or.reduce(upper << _PAIRS[:, 0], axis=2),
                low[:, ::2] | low[:, 1::2] << 4,
                nibbles.reshape(len(blocks), 128),
            ],
            axis=1,
            dtype=np.uint8,
        )


# Where the pairs of bits in a byte are.
_PAIRS = np.arange(0, 8, 2, dtype=np.uint8)[:, None]


def _pairs(codes: Bytes) -> Bytes:
    """Packs codes of 2 bits: of 128, byte c has those of c, c + 32, c + 64, c + 96."""
    four = codes.reshape(-1, 2, 4, 32) << _PAIRS
    return np.bitwise_or.reduce(four, axis=2).reshape(len(codes), 64)


def _nibbles_at(begin: int, end: int) -> Callable[[Bytes], Bytes]:
    """Two sub-scales a byte, the first one low."""

    def read(blocks: Bytes) -> Bytes:
        both = blocks[:, begin:end]
        nibbles = np.stack([both & 15, both >> 4], -1, dtype=np.uint8)
        return nibbles.reshape(len(blocks), -1)

    return read


def _top_nibbles_at(begin: int, step: int) -> Callable[[Bytes], Bytes]:
    """A sub-scale in the upper half of every ``step``-th byte."""
    return lambda blocks: np.right_shift(blocks[:, begin::step], 4, dtype="u1")


# llama.cpp's ``ggml-quants.c``, ``dequantize_row_iq2_xxs`` and so on.
_TWO = (8, 25, 43)
_IQ2_XXS = _Grid(GGMLQuantizationType.IQ2_XXS, _TWO, 1 / 8, _top_nibbles_at(2 + 7, 8))
_IQ2_XS = _Grid(GGMLQuantizationType.IQ2_XS, _TWO, 1 / 8, _nibbles_at(66, 74))
_IQ2_S = _Grid(GGMLQuantizationType.IQ2_S, _TWO, 1 / 8, _nibbles_at(74, 82))
_IQ3_XXS = _Grid(
    GGMLQuantizationType.IQ3_XXS,
    (4, 12, 20, 28, 36, 44, 52, 62),
    1 / 4,
    _top_nibbles_at(66 + 3, 4),
)
_IQ3_S = _Grid(
    GGMLQuantizationType.IQ3_S,
    (1, 3, 5, 7, 9, 11, 13, 15),
    1,
    _nibbles_at(106, 110),
)

_ENCODERS: dict[GGMLQuantizationType, tuple[Encoding, Callable[[Bytes], Bytes]]] = {
    GGMLQuantizationType.TQ1_0: (Encoding.TQ2_0, _tq2_0),
    _IQ2_XXS.ggml_type: (Encoding.IQ2_IN_Q3_K, _IQ2_XXS.in_q3_k),
    _IQ2_XS.ggml_type: (Encoding.IQ2_IN_Q3_K, _IQ2_XS.in_q3_k),
    _IQ2_S.ggml_type: (Encoding.IQ2_IN_Q3_K, _IQ2_S.in_q3_k),
    _IQ3_XXS.ggml_type: (Encoding.IQ3_XXS_IN_IQ4_XS, _IQ3_XXS.in_iq4_xs),
    _IQ3_S.ggml_type: (Encoding.IQ3_S_IN_IQ4_XS, _IQ3_S.in_iq4_xs),
}
