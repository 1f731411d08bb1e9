"""Packs bfloat16 weights in 12 bits each, without loss; ``narrow.mojo`` says how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .pieces import Bytes, Words

Numbers = npt.NDArray[np.uint16]

# Sign and mantissa of a bfloat16, and where its exponent begins.
_FIXED = np.uint16(0x807F)
_EXPONENT_AT = np.uint16(7)
# Exponents in a row that 4 bits tell apart, and all that there are.
_TOLD_APART, _EXPONENTS = 16, 256
# One column in so many says which exponents most weights have. Few can be wrong.
_SAMPLED = 8, 1
# Of a vector, and of a line of cache.
_LINE = 64


class TooManyExponentsError(Exception):
    """More lines than there is room for have an exponent that 4 bits do not hold."""


def kept_lines(columns: int) -> int:
    """Returns how many lines of a panel can be kept whole."""
    return max(4, columns // 64)


def head_bytes(columns: int) -> int:
    """Returns the bytes before a panel's first group."""
    return -(-4 * (kept_lines(columns) + 2) // _LINE) * _LINE


def beside_groups(columns: int) -> int:
    """Returns the bytes of a panel that are not in its groups."""
    return head_bytes(columns) + kept_lines(columns) * _LINE


def narrow(rows: Bytes, columns: int, out: Bytes) -> None:
    """Packs whole panels.

    Args:
        rows: uint8 ``[panels * 16, 2 * columns]``, bfloat16.
        columns: A multiple of 8.
        out: uint8 ``[panels, panel_bytes]``, of zeros.

    Raises:
        TooManyExponentsError: If a panel does not fit.
    """
    panels = np.ascontiguousarray(rows).view(np.uint16).reshape(len(out), -1, columns)
    kept, start = kept_lines(columns), head_bytes(columns)
    for step in _SAMPLED:
        exponents = panels >> _EXPONENT_AT
        exponents &= 0xFF  # not the sign
        bases = _bases(exponents[..., ::step])
        exponents -= bases[:, None, None]
        # An exponent below the base has become a large number.
        others = np.bitwise_or.reduce(exponents, axis=1) >= _TOLD_APART
        whole = others.view(np.uint16) != 0  # [panels, lines]
        if whole.sum(axis=1).max() <= kept:
            break
    else:
        raise TooManyExponentsError
    exponents &= _TOLD_APART - 1
    exponents <<= _EXPONENT_AT
    groups_end = start + 24 * columns
    groups = out[:, start:groups_end].view(np.uint32).reshape(len(out), -1, 3, 16)
    # [panels, 16, columns / 4] -> [panels, 16, groups, 2] -> [panels, groups, 2, 16]
    fixed = _joined(panels & _FIXED, 8).reshape(len(out), 16, -1, 2)
    groups[:, :, :2] = fixed.transpose(0, 2, 3, 1)
    # Lines 4 g + i and 4 g + i + 1 first, then all four.
    groups[:, :, 2] = _joined(_joined(exponents, 4), 8).swapaxes(1, 2)
    head = out[:, :start].view(np.uint32)
    head[:, 0] = bases.astype(np.uint32) * 0x00010001 << _EXPONENT_AT
    head[:, 1 : 2 + kept] = columns // 2
    rest = out[:, groups_end:].view(np.uint32).reshape(len(out), -1, 16)
    words = panels.view(np.uint32)
    for i in range(len(out)):
        numbers = np.flatnonzero(whole[i])
        head[i, 1 : 1 + numbers.size] = numbers
        rest[i, : numbers.size] = words[i][:, numbers].T


def _bases(exponents: Numbers) -> Numbers:
    """Returns each panel's first of those 16 in a row that most weights have."""
    panels = np.arange(len(exponents), dtype=np.uint32) * _EXPONENTS
    counts = np.bincount(
        (exponents + panels[:, None, None]).reshape(-1),
        minlength=len(exponents) * _EXPONENTS,
    ).reshape(-1, _EXPONENTS)
    until = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))
    found = np.argmax(until[:, _TOLD_APART:] - until[:, :-_TOLD_APART], axis=1)
    return found.astype(np.uint16)


def _joined(numbers: Numbers | Words, bits: int) -> Words:
    """Joins words of 32 bits in pairs, the second rotated right by ``bits``."""
    pairs = numbers.view(np.uint64)
    second = pairs >> 32
    rotated = second << 32 - bits
    second >>= bits
    rotated |= second
    rotated |= pairs
    return rotated.astype(np.uint32)
