"""Packs bfloat16 weights in 12 bits each, without loss; ``narrow.mojo`` says how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .pieces import Bytes, Words

Numbers = npt.NDArray[np.uint16]

# Sign and mantissa of a bfloat16, and where its exponent begins.
_FIXED = np.uint16(0x807F)
_EXPONENT_AT = np.uint16(7)
# Exponents that 4 bits tell apart, and all that there are.
_TOLD_APART, _EXPONENTS = 16, 256
# One column in so many says which exponents most weights have. Where so few mislead,
# all of them do.
_SAMPLED = 8, 1
# Bytes of a vector, and of a line of cache.
_LINE = 64


class TooManyExponentsError(Exception):
    """More lines than there is room for have an exponent that 4 bits do not hold."""


def kept_lines(columns: int) -> int:
    """Returns how many lines of a panel can be kept whole."""
    return max(4, columns // 64)


def head_bytes(columns: int) -> int:
    """Returns the bytes before a panel's first group."""
    return _LINE + -(-4 * (kept_lines(columns) + 1) // _LINE) * _LINE


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
    places, tables, whole = _places(panels)
    start = head_bytes(columns)
    end = start + 24 * columns
    groups = out[:, start:end].view(np.uint32).reshape(len(out), -1, 3, 16)
    # [panels, 16, columns / 4] -> [panels, 16, groups, 2] -> [panels, groups, 2, 16]
    fixed = _second_turned(panels & _FIXED).reshape(len(out), 16, -1, 2)
    groups[:, :, :2] = fixed.transpose(0, 2, 3, 1)
    # Lines 4 g + i and 4 g + i + 1 first, then all four.
    groups[:, :, 2] = _second_above(_second_above(places, 4), 8).swapaxes(1, 2)
    out[:, :_LINE].view(np.uint16)[...] = np.tile(tables << _EXPONENT_AT, 2)
    numbers = out[:, _LINE:start].view(np.uint32)
    numbers[:, : kept_lines(columns) + 1] = columns // 2
    lines = out[:, end:].view(np.uint32).reshape(len(out), -1, 16)
    words = panels.view(np.uint32)
    for i in range(len(out)):
        found = np.flatnonzero(whole[i])
        numbers[i, : found.size] = found
        lines[i, : found.size] = words[i][:, found].T


def _places(panels: Numbers) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
    """Says which exponents panels have.

    Args:
        panels: ``[panels, 16, columns]``.

    Returns:
        Each weight's place in its panel's table, as ``panels``; the tables,
        ``[panels, 16]``; which lines have another exponent, ``[panels, columns / 2]``.
    """
    for step in _SAMPLED:
        places = panels >> _EXPONENT_AT
        places &= np.uint16(0xFF)  # not the sign
        bases, zeros = _commonest(places[..., ::step])
        is_zero = None
        if zeros.any():
            is_zero = (places == 0) & zeros[:, None, None]
        # An exponent below the base becomes a large number.
        places -= bases[:, None, None]
        if is_zero is not None:
            places[is_zero] = 0
        in_a_row = _TOLD_APART - zeros
        others = np.maximum.reduce(places, axis=1) >= in_a_row[:, None]
        whole = others.view(np.uint16) != 0
        if whole.sum(axis=1).max() > kept_lines(panels.shape[2]):
            continue
        places &= np.uint16(_TOLD_APART - 1)
        tables = bases[:, None] + np.arange(_TOLD_APART, dtype=np.uint16)
        if is_zero is not None:
            places[is_zero] = _TOLD_APART - 1
            tables[zeros, -1] = 0
        return places, tables, whole
    raise TooManyExponentsError


def _commonest(exponents: Numbers) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Returns the first of those 16 in a row that most weights of a panel have.

    Or of 15, where with zeros, whose exponent is 0, they are more; and where.
    """
    panels = np.arange(len(exponents), dtype=np.uint32) * _EXPONENTS
    counts = np.bincount(
        (exponents + panels[:, None, None]).reshape(-1),
        minlength=len(exponents) * _EXPONENTS,
    ).reshape(-1, _EXPONENTS)
    until = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))
    all_16 = until[:, _TOLD_APART:] - until[:, :-_TOLD_APART]
    # Not from 0 on.
    only_15 = until[:, _TOLD_APART:] - until[:, 1 : 1 - _TOLD_APART]
    zeros = only_15.max(axis=1) + counts[:, 0] > all_16.max(axis=1)
    bases = np.where(zeros, only_15.argmax(axis=1) + 1, all_16.argmax(axis=1))
    return bases.astype(np.uint16), zeros


def _second_turned(numbers: Numbers) -> Words:
    """Joins words of 32 bits in pairs, the second rotated right by 8 bits."""
    pairs = numbers.view(np.uint64)
    second = pairs >> 32
    joined = second << 24
    second >>= 8
    joined |= second
    joined |= pairs
    return joined.astype(np.uint32)


def _second_above(numbers: Numbers | Words, bits: int) -> Words:
    """Joins words of 32 bits in pairs, the second shifted left; no bits meet."""
    pairs = numbers.view(np.uint64)
    return (pairs | pairs >> (32 - bits)).astype(np.uint32)
