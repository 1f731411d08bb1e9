"""Finds drafts: what followed the last time that a text went on as it ends now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SHORTEST, LONGEST = 2, 32
"""How many tokens before a draft must agree, and how many are looked at."""

SEARCHED = 1 << 16
"""How far back a text is searched, in tokens: about 0.1 ms."""


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: int64 ``[any]``.
        agreed: How many tokens before them agree, at most ``LONGEST``.
    """

    tokens: npt.NDArray[np.int64]
    agreed: int


NONE = Draft(np.empty(0, np.int64), 0)


def propose(text: npt.NDArray[np.int64], most: int) -> Draft:
    """Returns what followed where most of the text's last tokens stood before.

    Of several such places the last one counts. A text that has begun to repeat
    itself goes on doing so.

    Args:
        text: Token ids, ``[length]``, prompt and answer.
        most: How many tokens to draft.
    """
    text = text[-SEARCHED:]
    end = len(text) - 1
    if most < 1 or end < SHORTEST:
        return NONE
    # Where the last tokens stood before: the place of the last of them.
    places = np.flatnonzero(text[:end] == text[end])
    agreed = 1
    while agreed < LONGEST:
        longer = places[places >= agreed]
        longer = longer[text[longer - agreed] == text[end - agreed]]
        if not len(longer):
            break
        places = longer
        agreed += 1
    if agreed < SHORTEST:
        return NONE
    followed = text[places[-1] + 1 :]
    return Draft(np.resize(followed, most), agreed)
