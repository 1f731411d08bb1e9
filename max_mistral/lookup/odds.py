"""How many drafts a step should verify: what they bring against what they cost."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MOST = 15
"""Drafts of one request in a step."""

MOST_ROWS = 64
"""Rows of a step that has drafts."""

MARGIN = 1.03
"""How much faster than one without drafts a step must be expected to be."""

TILE = 16
"""Rows of a tile of quantized weights on x86 (``max_rows`` in ``tiles.mojo``)."""

TILE_COST = 1.5
"""What one more tile costs beside its rows, in rows: with Q4_K and Q6_K on a Zen 4."""


@functools.cache
def paid(rows: int) -> float:
    """Returns how many rows a step costs as, 1 for one.

    The kernels cut rows into tiles of 16, and the rest into 8, 4, 2 and 1, and decode
    a weight for each; where three are left, those are a tile of 4. Of other weights and
    CPUs the tiles are smaller or larger, and the steps' times tell.
    """
    rows += rows % 4 == 3
    tiles = rows // TILE + (rows % TILE).bit_count()
    return rows + TILE_COST * (tiles - 1)


def _kind(agreed: int) -> int:
    """Drafts are alike whose agreed tokens are 0 to 1, 2 to 3, 4 to 7, ..., from 16."""
    return min(max(agreed, 1).bit_length() - 1, 4)


@dataclass
class Odds:
    """How often the drafts of one request were right.

    It learns from every step, drafts verified or not: what was proposed is
    compared with what came.
    """

    right: list[float] = field(default_factory=lambda: [0.15, 0.2, 0.4, 0.7, 0.85])
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


class Cost:
    """What a step costs: ``base + slope * paid(rows)``, and ``extra`` with drafts.

    Least squares over the last steps, where older ones count less. Steps without
    drafts say little about the slope and nothing about the extra; what has been
    learned of them fades into the first guess, so that drafts are tried again.
    """

    SLOPE, EXTRA = 0.1, 0.02
    """First guesses, as parts of what a step of one row costs."""

    LEAST = 0.001
    """What a step costs without rows, as a part of what steps cost on average."""

    FADING = 0.97

    SLOWEST = 2
    """A step counts as at most so many times what was expected of it."""

    def __init__(self) -> None:
        # Of the steps' (1, paid rows, drafts or not): the sums of their products with
        # each other, and with the seconds.
        self._sums = [0.0] * 9
        self._found = (0.0, 0.0, 0.0)
        self._steps = 0

    def observe(self, rows: int, seconds: float, *, drafts: bool) -> None:
        """Takes in one step.

        Args:
            rows: How many rows it had.
            seconds: How long it took.
            drafts: Whether some of the rows were drafts.
        """
        if self.known:
            # One that something interrupted would count for dozens of others, early
            # ones for hundreds. Where steps do take longer, a few of them tell.
            expected = self.estimate(rows, drafts=drafts)
            if self._steps == 1 and expected > self.SLOWEST * seconds:
                # The first one was, and nothing was known yet to limit it by.
                self._sums = [0.0] * 9
            seconds = min(seconds, self.SLOWEST * expected)
        self._steps += 1
        cost = paid(rows)
        step = [1.0, cost, drafts, cost * cost, cost * drafts, drafts]
        step += [seconds, cost * seconds, drafts * seconds]
        # NumPy would take longer, for each step's work pushes it out of the cache.
        pairs = zip(self._sums, step, strict=True)
        self._sums = [self.FADING * before + new for before, new in pairs]
        steps, in_rows, in_drafts, *_, total, _, _ = self._sums
        # A row costs no less than nothing, nor a step without rows: where steps got
        # slower for another reason, as a longer context, the line through them may
        # fall, or rise too steeply.
        slope, extra = (max(cost, 0.0) for cost in self._rises())
        base = (total - in_rows * slope - in_drafts * extra) / steps
        self._found = (max(base, self.LEAST * total / steps), slope, extra)

    def _rises(self) -> tuple[float, float]:
        """Returns the slope and the extra that fit the sums best."""
        # Two more equations: either is a part of a step's cost.
        s, e = self.SLOPE, self.EXTRA
        guesses = (s * s + e * e, s * (s - 1) + e * e, -e, (s - 1) ** 2 + e * e, -e, 1)
        a, b, c, d, f, g = (x + y for x, y in zip(self._sums, guesses, strict=False))
        # [a b c; b d f; c f g] x = sums, less its first row.
        total, in_rows, in_drafts = self._sums[6:]
        d, f, g = d - b * b / a, f - b * c / a, g - c * c / a
        in_rows, in_drafts = in_rows - b * total / a, in_drafts - c * total / a
        size = d * g - f * f
        slope = (in_rows * g - in_drafts * f) / size
        extra = (in_drafts * d - in_rows * f) / size
        return slope, extra

    @property
    def known(self) -> bool:
        """Whether any step has been seen."""
        return bool(self._sums[0])

    def estimate(self, rows: int, *, drafts: bool) -> float:
        """Returns what a step costs, in seconds."""
        base, slope, extra = self._found
        return base + slope * paid(rows) + extra * drafts


class Candidate(NamedTuple):
    """A request's draft, as far as it may be verified."""

    agreed: int
    tokens: int
    odds: Odds


def how_many(candidates: Sequence[Candidate], cost: Cost) -> list[int]:
    """Returns how many tokens of each draft to verify, for most tokens a second.

    Drafts are taken by their odds, one token after the other, and the fastest number
    is kept. It is looked a tile beyond it, for the last rows of one cost least;
    no later draft pays, for its odds are no better.
    """
    none = [0] * len(candidates)
    if not cost.known or not any(candidate.tokens for candidate in candidates):
        return none
    rows, tokens = len(candidates), float(len(candidates))
    best, fastest = none, MARGIN * tokens / cost.estimate(rows, drafts=False)
    most = rows + TILE
    chosen = list(none)
    # The odds that all of a draft's tokens up to its next one are right.
    reach = [c.odds.next_right(c.agreed) if c.tokens else 0.0 for c in candidates]
    while rows < min(most, MOST_ROWS):
        likeliest = max(range(len(candidates)), key=reach.__getitem__)
        if not reach[likeliest]:
            break
        rows, tokens = rows + 1, tokens + reach[likeliest]
        chosen[likeliest] += 1
        rate = tokens / cost.estimate(rows, drafts=True)
        if rate > fastest:
            best, fastest, most = list(chosen), rate, rows + TILE
        candidate = candidates[likeliest]
        place = candidate.agreed + chosen[likeliest]
        reach[likeliest] *= candidate.odds.next_right(place)
        if chosen[likeliest] == candidate.tokens:
            reach[likeliest] = 0.0
    return best
