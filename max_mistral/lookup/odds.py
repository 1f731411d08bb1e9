"""How many drafts a step should verify: what they bring against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MOST = 15
"""Drafts of one request in a step."""

MOST_ROWS = 64
"""Rows of a step that has drafts."""

MARGIN = 1.1
"""How much more than its cost a draft must be expected to bring: both are guesses."""


def _kind(agreed: int) -> int:
    """Drafts are alike whose agreed tokens are 2 to 3, 4 to 7, 8 to 15, or more."""
    return min(agreed.bit_length() - 2, 3)


@dataclass
class Odds:
    """How often the drafts of one request were right.

    It learns from every step, drafts verified or not: what was proposed is
    compared with what came.
    """

    right: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.7, 0.85])
    """The odds of one more token for each kind of draft; first guesses."""

    PACE = 0.15

    def next_right(self, agreed: int) -> float:
        """Returns the odds that the token after ``agreed`` ones is right."""
        return self.right[_kind(agreed)]

    def learn(self, agreed: int, drafted: Sequence[int], came: Sequence[int]) -> int:
        """Compares a draft with what came; returns how many tokens were right.

        Args:
            agreed: How many tokens before the draft agreed.
            drafted: The draft.
            came: The tokens that came in its place.
        """
        for i, (token, right) in enumerate(zip(drafted, came, strict=False)):
            kind = _kind(agreed + i)
            self.right[kind] += self.PACE * ((token == right) - self.right[kind])
            if token != right:
                return i
        return min(len(drafted), len(came))


@dataclass
class Cost:
    """What a decode step costs by its rows: ``base + slope * rows``.

    Least squares over the last steps, where older ones count less. A step without
    drafts says nothing about the slope; what has been learned of it fades into
    the first guess, so that drafts are tried again.
    """

    FIRST_GUESS = 0.1
    """A row's cost over that of a step of one row."""

    FADING = 0.97

    weight: float = 0
    rows: float = 0
    squares: float = 0
    seconds: float = 0
    products: float = 0

    def observe(self, rows: int, seconds: float) -> None:
        """Takes in one step."""
        # A step that something interrupted would count for dozens of others.
        if self.weight > 4:
            seconds = min(seconds, 2 * self.estimate(rows))
        for name, value in {
            "weight": 1,
            "rows": rows,
            "squares": rows * rows,
            "seconds": seconds,
            "products": rows * seconds,
        }.items():
            setattr(self, name, self.FADING * getattr(self, name) + value)

    def fit(self) -> tuple[float, float]:
        """Returns ``base`` and ``slope``, in seconds; 0 before any step."""
        if not self.weight:
            return 0.0, 0.0
        # The guess is one more equation: guess * base - (1 - guess) * slope = 0.
        guess, rest = self.FIRST_GUESS, 1 - self.FIRST_GUESS
        a = np.array(
            [
                [self.weight + guess * guess, self.rows - guess * rest],
                [self.rows - guess * rest, self.squares + rest * rest],
            ]
        )
        base, slope = np.linalg.solve(a, [self.seconds, self.products])
        return float(base), float(slope)

    def estimate(self, rows: int) -> float:
        """Returns what a step costs, in seconds."""
        base, slope = self.fit()
        return base + slope * rows


@dataclass(frozen=True)
class Candidate:
    """A request's draft, as far as it may be verified."""

    agreed: int
    tokens: int
    odds: Odds


def how_many(candidates: Sequence[Candidate], cost: Cost) -> list[int]:
    """Returns how many tokens of each draft to verify, for most tokens a second.

    Drafts are taken by their odds, as long as one more brings a larger part of
    the step's tokens than it adds to the step's time.
    """
    base, slope = cost.fit()
    chosen = [0] * len(candidates)
    # The odds that all of a draft's tokens up to its next one are right.
    reach = [c.odds.next_right(c.agreed) if c.tokens else 0.0 for c in candidates]
    tokens, rows = float(len(candidates)), len(candidates)
    while rows < MOST_ROWS:
        best = max(range(len(candidates)), key=reach.__getitem__, default=None)
        if best is None or not slope:
            break
        gain, price = reach[best] / tokens, slope / (base + slope * rows)
        if gain <= MARGIN * price:
            break
        tokens, rows = tokens + reach[best], rows + 1
        chosen[best] += 1
        candidate = candidates[best]
        reach[best] *= candidate.odds.next_right(candidate.agreed + chosen[best])
        if chosen[best] == candidate.tokens:
            reach[best] = 0.0
    return chosen
