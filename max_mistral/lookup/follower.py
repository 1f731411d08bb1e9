"""Drafts for an answer that copies a text, also where it changes names in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .drafts import LONGEST, NONE, SHORTEST, Draft, Index
from .odds import MOST, Odds

LONGEST_NAME = 4
"""Most tokens of a name, the old or the new one."""

MOST_NAMES = 16
"""How many names are known at a time."""

SEARCHED = 1 << 16
"""How many of the last tokens are searched of the text that a follower begins with."""

Name = tuple[int, ...]


class Expected(NamedTuple):
    """A token that may come.

    Attributes:
        token: Its id.
        rest: What is left of a new name after it.
        next: Where the copied text goes on after the name.
    """

    token: int
    rest: Name
    next: int


class Spot(NamedTuple):
    """Two places in the text: in what is copied, and in the answer."""

    copied: int
    answer: int


@dataclass
class Copy:
    """What the answer is copying.

    Attributes:
        next: The index in the text of the token that may come next.
        agreed: How many tokens came as expected.
        began: Where that began.
        rest: What is left of a new name, before ``next``.
    """

    next: int
    agreed: int
    began: Spot
    rest: Name = ()


class Follower:
    """Follows one request's text, and drafts what comes next.

    Mostly a draft is what followed the last time (:class:`.drafts.Index`). Where an
    answer parts from what it copies, it may write a new name in place of an old one:
    the draft goes on behind the old name. When the two texts agree again, the names
    are known, and later drafts have the new one.

    Attributes:
        odds: How often its drafts were right.
    """

    def __init__(self) -> None:
        self.odds = Odds()
        self._index = Index()
        # Of the request's text, whose first tokens the index may not have.
        self._length: int | None = None
        self._copy: Copy | None = None
        self._expected: Iterator[Expected] = iter(())
        self._parting: Spot | None = None
        # By the old name the new one, or the same where the answer writes both.
        self._new_names: dict[Name, Name] = {}

    def propose(self, text: npt.NDArray[np.int64], most: int) -> Draft:
        """Returns a draft.

        Args:
            text: Token ids, ``[length]``, prompt and answer: those of the last call
                and what came since; a shorter one is another text.
            most: How many tokens to draft, up to ``MOST``.
        """
        self._follow(text)
        known = self._index.text
        self._choose(known)
        self._settle(known, len(known))
        if self._copy is None:
            self._expected = iter(())
            return NONE
        tokens, self._expected = self._walk(known, self._copy)
        return Draft(tokens[: max(min(most, MOST), 0)], self._copy.agreed)

    def _follow(self, text: npt.NDArray[np.int64]) -> None:
        """Takes in the tokens that came."""
        before, self._length = self._length, len(text)
        if before is None or len(text) < before:
            self._copy = self._parting = None
            self._new_names.clear()
            self._index = Index()
            self._index.extend(text[-SEARCHED:].tolist())
            return
        known = self._index.text
        first = len(known)
        self._index.extend(text[before:].tolist())
        if self._new_names:
            self._keep_names(known[max(first - LONGEST_NAME + 1, 0) :])
        if len(text) > before + MOST + 1:
            # Steps that others have run.
            self._copy = self._parting = None
        copy, expected = self._copy, self._expected
        if copy is None:
            return
        for place, token in enumerate(known[first:], first):
            right = next(expected, None)
            if right is None or right.token != token:
                if self._parting is None and copy.agreed >= SHORTEST:
                    self._parting = Spot(copy.next, place)
                self._copy = None
                return
            copy.agreed += 1
            copy.rest, copy.next = right.rest, right.next
            if self._settle(known, place + 1):
                _, expected = self._walk(known, copy)

    def _settle(self, text: list[int], length: int) -> bool:
        """Learns a name if the texts agree again behind it, or gives it up.

        Args:
            text: The text.
            length: How much of it has been followed.

        Returns:
            Whether a name was learned.
        """
        parting, copy = self._parting, self._copy
        if parting is None:
            return False
        if copy is not None and copy.agreed >= SHORTEST:
            old, new = _differing(text, parting, copy.began)
            if 0 < len(old) <= LONGEST_NAME and 0 < len(new) <= LONGEST_NAME:
                self._learn(tuple(old), tuple(new))
                self._parting = None
                return True
        if length - parting.answer > LONGEST_NAME + SHORTEST:
            self._parting = None
        return False

    def _learn(self, old: Name, new: Name) -> None:
        """Takes a name, and forgets the oldest one of too many."""
        known = self._new_names.pop(old, None)
        self._new_names[old] = old if known == old else new
        if len(self._new_names) > MOST_NAMES:
            del self._new_names[next(iter(self._new_names))]

    def _keep_names(self, came: list[int]) -> None:
        """Leaves those names as they are whose old one the answer writes too."""
        for size in range(1, LONGEST_NAME + 1):
            for i in range(len(came) - size + 1):
                name = tuple(came[i : i + size])
                if name in self._new_names:
                    self._new_names[name] = name

    def _choose(self, text: list[int]) -> None:
        """Goes on with what is copied, unless more tokens agree elsewhere."""
        agreed = -1 if self._copy is None else self._copy.agreed
        found = self._index.find() if agreed < LONGEST else None
        if found is not None and found.agreed > agreed:
            began = Spot(found.next - found.agreed, len(text) - found.agreed)
            self._copy = Copy(found.next, found.agreed, began)
        elif self._copy is None and self._parting is not None:
            # As if as many tokens of the old name had been written as of the new.
            behind = self._parting.copied + len(text) - self._parting.answer
            if behind < len(text) - 1:
                self._copy = Copy(behind, 0, Spot(behind, len(text)))

    def _walk(
        self, text: list[int], copy: Copy
    ) -> tuple[list[int], Iterator[Expected]]:
        """Returns the tokens that come if a text is copied on, with new names.

        Where it ends, what was copied follows itself.

        Returns:
            ``MOST`` tokens and one more, or a few, and what each leads to.
        """
        begin, size = copy.next, len(text) - copy.next
        if not self._new_names and not copy.rest:
            # As most texts have it; the loop below would take longer.
            tokens = _repeated(text, begin, MOST + 1)
            places = enumerate(tokens, 1)
            return tokens, (Expected(t, (), begin + i % size) for i, t in places)
        # Each token that is expected takes at most a name of what is copied.
        copied = _repeated(text, begin, (MOST + 1) * LONGEST_NAME)
        expected = _spelled(copy.rest, begin)
        at = 0
        while len(expected) <= MOST:
            old = self._old_name(copied, at)
            new = self._new_names.get(old, old)
            at += len(old)
            expected += _spelled(new, begin + at % size)
        return [token for token, *_ in expected], iter(expected)

    def _old_name(self, copied: list[int], at: int) -> Name:
        """Returns the longest name at a place, or its token."""
        for size in range(LONGEST_NAME, 1, -1):
            name = tuple(copied[at : at + size])
            if name in self._new_names:
                return name
        return (copied[at],)


def _repeated(text: list[int], begin: int, size: int) -> list[int]:
    """Returns ``size`` tokens of a text from a place on, which follow themselves."""
    part = text[begin : begin + size]
    if len(part) < size:
        part = (part * -(-size // len(part)))[:size]
    return part


def _spelled(name: Name, behind: int) -> list[Expected]:
    """Returns a name's tokens, before the place ``behind``."""
    return [Expected(token, name[i + 1 :], behind) for i, token in enumerate(name)]


def _differing(text: list[int], begin: Spot, end: Spot) -> tuple[list[int], list[int]]:
    """Returns what is copied and what the answer has, without an end that both have."""
    old, new = text[begin.copied : end.copied], text[begin.answer : end.answer]
    while len(old) and len(new) and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return old, new
