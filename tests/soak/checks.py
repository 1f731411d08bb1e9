"""What is checked: what became of each request, and what the server holds on to."""

from __future__ import annotations

import asyncio
import enum
import json
import os
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field

import httpx

LIMIT = 300  # seconds in which the busiest machine answers


class Outcome(enum.StrEnum):
    """What became of a request."""

    RIGHT = "right"
    REFUSED = "refused"
    LEFT = "left"  # by the client
    WRONG = "wrong"
    CRASHED = "crashed"  # a 5xx, or what is no HTTP
    HUNG = "hung"
    CLOSED = "closed"  # the connection, before an answer
    LOST = "lost"  # an answer, in its middle


FAILURES = frozenset(
    {Outcome.WRONG, Outcome.CRASHED, Outcome.HUNG, Outcome.CLOSED, Outcome.LOST}
)
Result = tuple[Outcome, str]


def refusal(status: int, text: str, what: str) -> Result:
    """Judges an answer to what should be refused: a 4xx with a sentence."""
    said = f"{what}: {status} {text[:300]}"
    if status >= 500:
        return Outcome.CRASHED, said
    if not 400 <= status < 500:
        return Outcome.WRONG, said
    try:
        body = json.loads(text)
        sentence = body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, KeyError, TypeError):
        sentence = ""
    # MAX's own words where it has none.
    worded = sentence and sentence != "Value error."
    return (Outcome.REFUSED, "") if worded else (Outcome.WRONG, said)


def unanswered(status: int, text: str, what: str) -> Result:
    """Judges what came in place of an answer to a valid question.

    A refusal is no better than a wrong answer. A 429 says that MAX's queue is full,
    as that of a worker that is gone becomes before the server notices: a crash.
    """
    crashed = status == 429 or status >= 500
    outcome = Outcome.CRASHED if crashed else Outcome.WRONG
    return outcome, f"{what}: {status} {text[:300]}"


class StreamError(Exception):
    """A stream that ends with an error in the place of an answer."""


@dataclass
class Tally:
    """Counts requests by what became of them.

    Attributes:
        outcomes: How many of each.
        kinds: How many of each kind of request.
        examples: The first failures, in words.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[Outcome, str]] = field(default_factory=list)

    async def count(self, kind: str, request: Awaitable[Result]) -> None:
        """Waits for a request and counts it."""
        outcome, said = await judged(request)
        self.kinds[kind] += 1
        self.outcomes[outcome] += 1
        if outcome in FAILURES and len(self.examples) < 20:
            self.examples.append((outcome, f"{kind}: {outcome}: {said}"))

    def failures(self, allowed: frozenset[Outcome] = frozenset()) -> list[str]:
        """What happened that may not, but for some, in words."""
        bad = {o: n for o, n in self.outcomes.items() if o in FAILURES - allowed}
        counts = [f"{n} requests {outcome}" for outcome, n in bad.items()]
        return counts + [line for o, line in self.examples if o in bad]

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def faults(self) -> int:
        """How many requests were meant to hurt."""
        ours = ("cancel", "dawdle", "vanish", "deafen", "nonsense")
        return sum(self.kinds[kind] for kind in ours)


async def judged(request: Awaitable[Result]) -> Result:
    """Waits for a request; what it raises is a result too."""
    try:
        async with asyncio.timeout(LIMIT):
            return await request
    except StreamError as error:
        return Outcome.CRASHED, repr(error)
    except (TimeoutError, httpx.TimeoutException) as error:
        return Outcome.HUNG, repr(error)
    except httpx.HTTPStatusError as error:
        return unanswered(error.response.status_code, error.response.text, str(error))
    except httpx.RemoteProtocolError as error:
        closed = "without sending a response" in str(error)
        return Outcome.CLOSED if closed else Outcome.LOST, repr(error)
    except (httpx.TransportError, OSError) as error:
        return Outcome.CLOSED, repr(error)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Outcome.WRONG, f"an answer that cannot be read: {error!r}"


@dataclass(frozen=True)
class Sample:
    """What a server's processes hold while no request is open.

    Args:
        requests: How many were answered before.
        memory: Resident bytes of all its processes.
        files: Open file descriptors.
        threads: Of all its processes.
        shared: How many names in shared memory they use.
    """

    requests: int
    memory: int
    files: int
    threads: int
    shared: int


# Over fewer requests memory follows the allocator, which takes megabytes at once.
ENOUGH = 1000


def growth(samples: list[Sample], bytes_a_request: float) -> list[str]:
    """Returns in words what grew from the first third of the samples to the last.

    Args:
        samples: In their order, without those of the warm-up.
        bytes_a_request: How long a request's body is in the mean: who keeps
            requests keeps at least as much of each.
    """
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    assert first
    found = []
    between = last[0].requests - first[-1].requests
    grown = min(s.memory for s in last) - max(s.memory for s in first)
    bound = bytes_a_request * between
    if between >= ENOUGH and grown > bound:
        found.append(f"memory grew by {grown} bytes, more than {bound:.0f}")
    # Python's pool of threads, which starts them when it first needs them.
    pool = min(32, (os.cpu_count() or 1) + 4)
    for name, most in (("files", 0), ("shared", 0), ("threads", pool)):
        then, now = (max(getattr(s, name) for s in part) for part in (first, last))
        if now > then + most:
            found.append(f"{name} grew from {then} to {now}")
    return found
