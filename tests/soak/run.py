"""One run: the load with its samples, the ends, and the figures."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.soak.checks import FAILURES, Outcome, Sample, Tally, growth
from tests.soak.ends import kill_main, kill_worker, sigterm
from tests.soak.load import Load
from tests.soak.server import SETTINGS, Server, start, write_model

KILLS = {"worker": kill_worker, "main": kill_main}
ROUNDS = 12  # between which the server is looked at
WARM_UP = 3  # of them, in which its pools and caches fill
SETTLES = 30  # seconds in which the busiest machine closes connections
LEAST = 10 * ROUNDS  # requests to a server: with fewer a round has hardly a fault


@dataclass
class Report:
    """What a run found.

    Attributes:
        outcomes: How many requests of the load ended in each way.
        kinds: How many of each kind there were.
        faults: How many of them were meant to hurt.
        kills: How many servers ended by a signal.
        preemptions: How many requests lost their KV pages to others.
        seconds: How long the load took.
        samples: What the servers held between rounds, by setting.
        stopped: Where there was less load than asked for, and why.
        wrong: What is wrong, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    kills: int = 0
    preemptions: int = 0
    seconds: float = 0
    samples: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """What goes wrong within is part of what was found, and not its end."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.wrong.append(f"{what}: {error!r}")

    def add(self, tally: Tally) -> None:
        self.outcomes.update({str(o): n for o, n in tally.outcomes.items()})
        self.kinds.update(tally.kinds)
        self.faults += tally.faults
        self.wrong += tally.failures()

    def markdown(self) -> str:
        """The figures as a table."""
        names = ["requests soaked", "faults injected", "kills", "preemptions"]
        counts = [self.outcomes.total(), self.faults, self.kills, self.preemptions]
        for outcome in Outcome:
            if outcome in FAILURES:
                names.append(str(outcome))
                counts.append(self.outcomes[str(outcome)])
        rows = [names, ["---"] * len(names), [f"{count:,}" for count in counts]]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shares(total: int, count: int) -> list[int]:
    """Returns ``count`` numbers as equal as can be, whose sum is ``total``."""
    return [total * (i + 1) // count - total * i // count for i in range(count)]


@contextlib.asynccontextmanager
async def loaded(folder: Path, name: str) -> AsyncIterator[tuple[Server, Load]]:
    """Starts a server, and clients that know its answers."""
    setting = SETTINGS[name]
    with start(folder, setting) as server:
        models = httpx.get(f"{server.url}/models").json()["data"]
        load = Load(server.url, models[0]["id"], setting.max_length, Tally())
        load.wanted = await load.collect()
        yield server, load


async def soak(
    folder: Path, name: str, requests: int, minutes: float, report: Report
) -> None:
    """Loads a server, then ends it by SIGTERM.

    Args:
        folder: Where a model goes.
        name: Which of ``SETTINGS``.
        requests: How many, in all.
        minutes: When to stop beforehand; there are three rounds at least after
            the warm-up.
        report: What it is added to.
    """
    write_model(folder, SETTINGS[name])
    async with loaded(folder, name) as (server, load):
        began, sent = time.monotonic(), 0
        samples: list[Sample] = []
        try:
            await load.crowd()
            for i, share in enumerate(shares(requests, ROUNDS)):
                late = time.monotonic() - began > minutes * 60
                if late and i >= WARM_UP + 3:
                    report.stopped.append(
                        f"{name}: stopped after {sent:,} of {requests:,} requests, "
                        f"for its {minutes:g} minutes were over"
                    )
                    break
                await load.run(share, seed=i)
                sent += share
                samples.append(await settled(server, load.tally.requests, samples))
                bad = load.tally.failures()
                print(f"{name}: {_line(samples[-1])} {bad or ''}", flush=True)
        finally:
            report.seconds += time.monotonic() - began
            report.preemptions += server.preemptions()
            report.samples[name] = [asdict(sample) for sample in samples]
            report.add(load.tally)
        report.wrong += growth(samples[WARM_UP:], load.bytes_a_request())
        again = await load.collect()
        changed = [q for q, answer in again.items() if answer != load.wanted[q]]
        report.wrong += [f"answered otherwise after the load: {q}" for q in changed]
        await end(sigterm, server, load, report)


async def settled(server: Server, requests: int, before: list[Sample]) -> Sample:
    """Returns what a server holds once it has closed what the load had left.

    That is when it has no more files open than in any sample before. If it never has,
    it is the sample with the fewest of ``SETTLES`` seconds.
    """
    fewest = min((sample.files for sample in before), default=None)
    found: list[Sample] = []
    for _ in range(SETTLES):
        # What was left is cancelled meanwhile.
        await asyncio.sleep(1)
        found.append(server.sample(requests))
        if fewest is None or found[-1].files <= fewest:
            break
    return min(found, key=lambda sample: sample.files)


async def kill(folder: Path, name: str, what: str, report: Report) -> None:
    """Starts a server, loads it and kills one of its processes."""
    write_model(folder, SETTINGS[name])
    async with loaded(folder, name) as (server, load):
        await end(KILLS[what], server, load, report)


async def end(how: Any, server: Server, load: Load, report: Report) -> None:
    wrong = await how(server, load)
    counts = {str(o): n for o, n in load.tally.outcomes.items()}
    print(f"{how.__name__}: {counts} {wrong or ''}", flush=True)
    report.kills += 1
    report.wrong += [f"{how.__name__}: {line}" for line in wrong]


def _line(sample: Sample) -> str:
    return (
        f"{sample.requests} requests, {sample.memory / 2**20:.1f} MiB, "
        f"{sample.files} files, {sample.threads} threads, "
        f"{sample.shared} names in shared memory"
    )
