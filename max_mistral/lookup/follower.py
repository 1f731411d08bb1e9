"""Drafts for an answer that copies a text, also where it changes names in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .drafts import LONGEST, NONE, SHORTEST, Draft, Place, Tokens, find
from .odds import MOST, Odds

LONGEST_NAME = 4
"""Most tokens of a name, the old or the new one."""

MOST_NAMES = 16
"""How many new names are known at a time."""

Name = tuple[int, ...]


class Expected(NamedTuple):
    """A token that may come.

    Attributes:
        token: Its id.
        rest: What is left of a new name after it.
        next: The place in the text of what is copied after that.
    """

    token: int
    rest: Name
    next: int


class Parting(NamedTuple):
    """Where an answer left what it copied: the places of the two tokens that differ."""

    copied: int
    answer: int


class Follower:
    """Follows one request's text, and drafts what comes next.

    Mostly a draft is what followed the last time (:func:`.drafts.find`). An answer
    that parts from it by one token may have put a new name for an old one: then the
    draft goes on behind the name. Once that was so, drafts have the new name too.

    Attributes:
        odds: How often its drafts were right.
    """

    def __init__(self) -> None:
        self.odds = Odds()
        self._length = 0
        self._place: Place | None = None
        # What the answer has still to write before it copies on from there.
        self._rest: Name = ()
        self._expected: list[Expected] = []
        self._parting: Parting | None = None
        self._names: dict[Name, Name] = {}
        # Old names that the answer writes as well.
        self._kept: set[Name] = set()

    def propose(self, text: Tokens, most: int) -> Draft:
        """Returns a draft.

        Args:
            text: Token ids, ``[length]``, prompt and answer; the same as at the last
                call, and what came since.
            most: How many tokens to draft, up to ``MOST``.
        """
        self._drop_names(text)
        self._follow(text)
        place = self._place
        at_best = place is not None and place.agreed >= LONGEST
        found = None if at_best else find(text)
        if self._parting is not None:
            self._learn_name(text, self._parting, found)
        self._choose(text, found)
        if self._place is None:
            self._expected = []
            return NONE
        self._expected = self._walk(text, self._place.next)
        tokens = [token for token, *_ in self._expected[: max(min(most, MOST), 0)]]
        return Draft(np.array(tokens, np.int64), self._place.agreed)

    def _drop_names(self, text: Tokens) -> None:
        """Forgets a new name where the answer has written the old one."""
        for old in list(self._names):
            came = text[max(self._length - len(old) + 1, 0) :].tolist()
            starts = range(len(came) - len(old) + 1)
            if any(tuple(came[i : i + len(old)]) == old for i in starts):
                del self._names[old]
                self._kept.add(old)

    def _follow(self, text: Tokens) -> None:
        """Goes on by the tokens that came, or parts where they are others."""
        came = text[self._length :].tolist()
        place, before = self._place, self._length
        self._length = len(text)
        if place is None:
            return
        if len(came) > len(self._expected):
            self._place = self._parting = None
            return
        for i, (token, expected) in enumerate(zip(came, self._expected, strict=False)):
            if token != expected.token:
                if place.agreed >= SHORTEST:
                    self._parting = Parting(place.next, before + i)
                self._place = None
                return
            self._place = place = Place(expected.next, place.agreed + 1)
            self._rest = expected.rest

    def _learn_name(self, text: Tokens, parting: Parting, found: Place | None) -> None:
        """Takes what stands between a parting and where texts agree again for names."""
        for place in (self._place, found):
            if place is None or place.agreed < SHORTEST:
                continue
            old = text[parting.copied : place.next - place.agreed].tolist()
            new = text[parting.answer : len(text) - place.agreed].tolist()
            if 0 < len(old) <= LONGEST_NAME and 0 < len(new) <= LONGEST_NAME:
                self._add_name(tuple(old), tuple(new))
            self._parting = None
            return
        if len(text) - parting.answer > LONGEST_NAME + SHORTEST:
            self._parting = None

    def _add_name(self, old: Name, new: Name) -> None:
        """Takes a name, and forgets the oldest one of too many."""
        if old not in self._kept:
            self._names[old] = new
        if len(self._names) > MOST_NAMES:
            del self._names[next(iter(self._names))]

    def _choose(self, text: Tokens, found: Place | None) -> None:
        """Stays where the answer is, unless more tokens agree elsewhere."""
        place = self._place
        if place is not None and (found is None or found.agreed <= place.agreed):
            return
        self._place, self._rest = found, ()
        if found is None and self._parting is not None:
            # As if as many tokens of the old name had been written as of the new.
            behind = self._parting.copied + len(text) - self._parting.answer
            if behind < len(text) - 1:
                self._place = Place(behind, 0)

    def _walk(self, text: Tokens, start: int) -> list[Expected]:
        """Returns what comes if the text is copied from ``start`` with new names.

        Where it ends, what was copied follows itself.
        """
        rest = len(text) - start
        # Each token that is expected takes at most a name of what is copied.
        most = (MOST + 1) * LONGEST_NAME
        copied = np.resize(text[start : start + most], most).tolist()
        expected = _spelled(self._rest, start)
        if not self._names:
            copied = copied[: MOST + 1]
            return expected + [
                Expected(token, (), start + i % rest) for i, token in enumerate(copied, 1)
            ]
        at = 0
        while len(expected) <= MOST:
            old: Name = (copied[at],)
            new = old
            for name in self._names:
                if tuple(copied[at : at + len(name)]) == name:
                    old, new = name, self._names[name]
                    break
            at += len(old)
            expected += _spelled(new, start + at % rest)
        return expected


def _spelled(name: Name, behind: int) -> list[Expected]:
    """Returns a name's tokens, before the place ``behind``."""
    return [Expected(token, name[i + 1 :], behind) for i, token in enumerate(name)]
