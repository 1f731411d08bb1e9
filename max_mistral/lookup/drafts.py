"""Drafts, and where they are found: where the text's last tokens stood before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

SHORTEST, LONGEST = 2, 32
"""How many tokens must agree where a draft is found, and how many are looked at."""

SEARCHED = 1 << 16
"""How far back a text is searched, in tokens: about 0.1 ms."""

FEW = 64
"""Up to how many places are compared all at once."""


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: int64 ``[any]``.
        agreed: How many tokens before them came as expected.
    """

    tokens: Tokens
    agreed: int


NONE = Draft(np.empty(0, np.int64), 0)


class Place(NamedTuple):
    """Where a text goes on as it may go on at its end.

    Attributes:
        next: The index of the token that may come next.
        agreed: How many tokens before it are those at the text's end, at most
            ``LONGEST``.
    """

    next: int
    agreed: int


def find(text: Tokens) -> Place | None:
    """Returns where most of a text's last tokens stood before.

    Of several such places the last one counts. A text that has begun to repeat
    itself goes on doing so. ``None`` if fewer than ``SHORTEST`` agree anywhere.

    Args:
        text: Token ids, ``[length]``, prompt and answer. Its last ``SEARCHED`` count.
    """
    skipped = max(len(text) - SEARCHED, 0)
    text = text[skipped:]
    end = len(text) - 1
    if end < SHORTEST:
        return None
    # Where the last tokens stood before: the place of the last of them.
    places = np.flatnonzero(text[:end] == text[end])
    agreed = 1
    while agreed < SHORTEST or (len(places) > FEW and agreed < LONGEST):
        longer = places[places >= agreed]
        longer = longer[text[longer - agreed] == text[end - agreed]]
        if not len(longer):
            break
        places = longer
        agreed += 1
    if agreed < SHORTEST:
        return None
    if len(places) > FEW:
        # So many agree in the same tokens, and none in more.
        return Place(skipped + int(places[-1]) + 1, agreed)
    # [places, tokens back]
    back = np.arange(min(LONGEST, end))
    before = places[:, None] - back
    same = (text[before] == text[end - back]) & (before >= 0)
    alike = np.where(same.all(axis=1), len(back), same.argmin(axis=1))
    agreed = int(alike.max())
    place = places[np.flatnonzero(alike == agreed)[-1]]
    return Place(skipped + int(place) + 1, agreed)
