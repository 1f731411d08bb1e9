"""Drafts, and where they are found: where the text's last tokens stood before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SHORTEST, LONGEST = 2, 32
"""How many tokens must agree where a draft is found, and how many are looked at."""

FEW = 64
"""How many places are looked at, the last ones."""


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: Their ids.
        agreed: How many tokens before them came as expected.
    """

    tokens: list[int]
    agreed: int


NONE = Draft([], 0)


class Place(NamedTuple):
    """Where a text goes on as it may go on at its end.

    Attributes:
        next: The index of the token that may come next.
        agreed: How many tokens before it are those at the text's end, at most
            ``LONGEST``.
    """

    next: int
    agreed: int


class Index:
    """A text that grows, and where its last tokens stood before.

    It knows of each two tokens where they stood last, and of each such place the one
    before: up to 220 bytes a token.

    Attributes:
        text: Token ids.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        # Of each two tokens where the second stood last.
        self._last: dict[tuple[int, int], int] = {}
        # Of each place where its two tokens stood before that, or -1.
        self._before: list[int] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Takes in tokens at the text's end."""
        text, last = self.text, self._last
        for token in tokens:
            place = len(text)
            text.append(token)
            if not place:
                self._before.append(-1)
                continue
            pair = text[-2], token
            self._before.append(last.get(pair, -1))
            last[pair] = place

    def find(self) -> Place | None:
        """Returns the place before which the most tokens agree with the text's end.

        Of several such places the last one counts: a text that has begun to repeat
        itself goes on doing so. ``None`` if fewer than ``SHORTEST`` agree anywhere.
        Where they do at more than ``FEW`` places, the last ones are looked at.
        """
        place = self._before[-1] if self._before else -1
        found, most = -1, 0
        for _ in range(FEW):
            if place < 0 or most == LONGEST:
                break
            agreed = self._agreed(place)
            if agreed > most:
                found, most = place, agreed
            place = self._before[place]
        return Place(found + 1, most) if most else None

    def _agreed(self, place: int) -> int:
        """How many tokens up to a place are those at the end; two are known to be."""
        text, last = self.text, len(self.text) - 1
        agreed, most = SHORTEST, min(place + 1, LONGEST)
        while agreed < most and text[place - agreed] == text[last - agreed]:
            agreed += 1
        return agreed
