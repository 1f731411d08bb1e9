"""What is measured of an engine, whichever it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

PREFILL, DEPTH, STEPS, DEEP_STEPS, BATCH = 512, 4096, 32, 8, 8
# Tokens of a prompt.
PREFILLS = {"prefill": PREFILL, "prefill_deep": DEPTH}
# What is decoded: requests at a time, tokens of each before it, steps timed.
DECODES = {
    "decode": (1, 16, STEPS),
    "decode_batch": (BATCH, 16, STEPS),
    "decode_deep": (1, DEPTH, DEEP_STEPS),
}
Prompts = list[list[int]]


def requests_of(measure: str) -> tuple[int, int, int]:
    """Returns a measure's requests, tokens of each, and steps: of a prefill none."""
    if measure in PREFILLS:
        return 1, PREFILLS[measure], 0
    return DECODES[measure]


def tokens(count: int, seed: int = 0) -> list[int]:
    """Returns random tokens of the model's vocabulary."""
    return [int(t) for t in np.random.default_rng(seed).integers(300, 31999, count)]


class Engine(Protocol):
    """What is measured."""

    kv_bytes: int
    """The KV cache that the engine reserves."""

    def start(self, prompts: Prompts) -> Callable[[], object]:
        """Returns a function that computes each request's next token.

        Its first call reads the prompts. Whatever was started before has ended.
        """


def measure(
    engine: Engine, decodes: Mapping[str, tuple[int, int, int]], prefills: int
) -> Iterator[tuple[str, float]]:
    """Yields each measure and an engine's rate, as it comes."""
    rates = [rate(engine, "prefill", seed=seed) for seed in range(prefills)]
    yield "prefill", statistics.median(rates)
    for name in decodes:
        yield name, rate(engine, name, decodes)


def rate(
    engine: Engine,
    name: str,
    decodes: Mapping[str, tuple[int, int, int]] = DECODES,
    seed: int = 0,
) -> float:
    """Returns tokens a second of one of ``PREFILLS`` or of ``decodes``."""
    if name in PREFILLS:
        count = PREFILLS[name]
        return median_rate(engine.start([tokens(count, seed)]), 1, count)
    batch, before, steps = decodes[name]
    step = engine.start([tokens(before, i) for i in range(batch)])
    step()
    return median_rate(step, steps, batch)


def median_rate(step: Callable[[], object], count: int, per_step: int) -> float:
    """Returns tokens a second over the median of ``count`` steps."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return per_step / statistics.median(times)
