"""How a server ends: by SIGTERM, without its worker, or without its head."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

import psutil

from tests.soak.checks import LIMIT, Outcome, Tally
from tests.soak.load import CLIENTS, Load
from tests.soak.server import Server

# uvicorn raises the signal again, and MAX exits as a shell says it.
SIGTERM_STATUS = (0, 128 + signal.SIGTERM)

# What MAX leaves behind when its main process is killed: the process that counts
# metrics, and Python's resource tracker, which waits for that one.
KNOWN_ORPHANS = 2
TRACKER = "multiprocessing.resource_tracker"

COMPLAINT = re.compile(r".*(?:Traceback|\bERROR\b|\w*Warning\b|leaked).*")


async def sigterm(server: Server, load: Load) -> list[str]:
    """Asks a busy server to end; returns in words what is wrong.

    Whatever is open is answered; whatever comes later finds no server.
    """
    tally, log = await _end(server, load, server.process.pid, signal.SIGTERM)
    wrong = tally.failures(allowed=frozenset({Outcome.CLOSED}))
    wrong += _left(server, server.wait(LIMIT))
    if server.process.returncode not in SIGTERM_STATUS:
        wrong.append(f"the exit status is {server.process.returncode}")
    return wrong + COMPLAINT.findall(log)


async def kill_worker(server: Server, load: Load) -> list[str]:
    """Kills the process that has the model; returns in words what is wrong.

    The server says so and ends. What it cannot answer any more it may not answer
    wrongly, nor leave open.
    """
    tally, log = await _end(server, load, server.worker().pid, signal.SIGKILL)
    cut = frozenset({Outcome.CLOSED, Outcome.LOST, Outcome.CRASHED})
    wrong = tally.failures(allowed=cut) + _left(server, server.wait(LIMIT))
    if server.process.returncode in (0, None):
        wrong.append(f"the exit status is {server.process.returncode}")
    if "Worker crashed" not in log:
        wrong.append("the server did not say that its worker crashed")
    return wrong


async def kill_main(server: Server, load: Load) -> list[str]:
    """Kills the main process; returns in words what is wrong.

    The worker, which has the model in memory, ends by itself. Two small processes of
    MAX's stay; once they are ended, no shared memory and no semaphore is left.
    """
    worker = server.worker()
    tally, _ = await _end(server, load, server.process.pid, signal.SIGKILL)
    cut = frozenset({Outcome.CLOSED, Outcome.LOST})
    wrong = tally.failures(allowed=cut)
    alive = server.wait(30)
    if worker in alive:
        wrong.append("the model worker outlives its server")
    elif len(alive) <= KNOWN_ORPHANS:
        alive = _end_orphans(server, alive)
    return wrong + _left(server, alive)


async def _end(server: Server, load: Load, pid: int, number: int) -> tuple[Tally, str]:
    """Sends a signal under load; returns the tally and what the server then said."""
    load.tally = Tally()
    requests = asyncio.create_task(load.run(1000 * CLIENTS, pid, faults=False))
    while load.tally.requests < CLIENTS and not requests.done():
        await asyncio.sleep(0.1)
    server.shared_memory()
    log = len(server.said()[1])
    os.kill(pid, number)
    # Of a server that ignores it the processes are found to be left behind.
    deadline = time.monotonic() + LIMIT
    while (
        server.process.poll() is None
        and not load.tally.outcomes[Outcome.CLOSED]
        and time.monotonic() < deadline
    ):
        await asyncio.sleep(0.1)
    # The rest would find no one.
    load.stop()
    await requests
    return load.tally, server.said()[1][log:]


def _end_orphans(server: Server, orphans: list[psutil.Process]) -> list[psutil.Process]:
    """Ends what MAX is known to leave behind; returns what then is there still.

    Not Python's tracker: when the last process that may use shared memory and
    semaphores has ended, it removes them, and then ends itself.
    """
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            if TRACKER not in " ".join(process.cmdline()):
                process.kill()
    return server.wait(30)


def _left(server: Server, alive: list[psutil.Process]) -> list[str]:
    """What a server leaves behind, in words: processes, or their shared memory."""
    if alive:
        return [f"left behind: {p.pid} {' '.join(p.cmdline())[-80:]}" for p in alive]
    names = {entry.name for entry in Path("/dev/shm").iterdir()}
    return [f"left in shared memory: {name}" for name in sorted(server.names & names)]
