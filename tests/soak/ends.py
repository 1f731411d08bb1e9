"""How a server ends: by SIGTERM, without its worker, or without its head."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

from tests.soak.checks import LIMIT, Outcome, Tally
from tests.soak.load import CLIENTS, Load
from tests.soak.server import Server

# uvicorn raises the signal again, and MAX exits as a shell says it.
SIGTERM_STATUS = (0, 128 + signal.SIGTERM)

# What MAX leaves behind when its main process is killed: the process that counts
# metrics, and Python's resource tracker, which waits for that one.
KNOWN_ORPHANS = 2

COMPLAINT = re.compile(r".*(?:Traceback|\bERROR\b|\w*Warning\b|leaked).*")


async def sigterm(server: Server, load: Load) -> list[str]:
    """Asks a busy server to end; returns in words what is wrong.

    Whatever is open is answered; whatever comes later finds no server.
    """
    tally, log = await _end(server, load, server.process.pid, signal.SIGTERM)
    wrong = tally.failures(allowed=frozenset({Outcome.CLOSED}))
    wrong += _left(server, 0)
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
    wrong = tally.failures(allowed=cut) + _left(server, 0)
    if server.process.returncode in (0, None):
        wrong.append(f"the exit status is {server.process.returncode}")
    if "Worker crashed" not in log:
        wrong.append("the server did not say that its worker crashed")
    return wrong


async def kill_main(server: Server, load: Load) -> list[str]:
    """Kills the main process; returns in words what is wrong.

    The worker, which has the model in memory, ends by itself.
    """
    worker = server.worker()
    tally, _ = await _end(server, load, server.process.pid, signal.SIGKILL)
    cut = frozenset({Outcome.CLOSED, Outcome.LOST})
    wrong = tally.failures(allowed=cut) + _left(server, KNOWN_ORPHANS)
    if worker in server.processes():
        wrong.append("the model worker outlives its server")
    return wrong


async def _end(server: Server, load: Load, pid: int, number: int) -> tuple[Tally, str]:
    """Sends a signal under load; returns the tally and what the server then said."""
    load.tally = Tally()
    requests = asyncio.create_task(load.run(1000 * CLIENTS, pid, faults=False))
    while load.tally.requests < CLIENTS:
        await asyncio.sleep(0.1)
    server.shared_memory()
    log = len(server.said()[1])
    os.kill(pid, number)
    while server.process.poll() is None and not load.tally.outcomes[Outcome.CLOSED]:
        await asyncio.sleep(0.1)
    # The rest would find no one.
    load.stop()
    await requests
    return load.tally, server.said()[1][log:]


def _left(server: Server, known: int) -> list[str]:
    """What a server leaves behind, in words."""
    seconds = LIMIT if known == 0 else 30
    alive = server.wait(seconds)
    if len(alive) > known:
        return [f"left behind: {p.pid} {' '.join(p.cmdline())[-80:]}" for p in alive]
    names = {entry.name for entry in Path("/dev/shm").iterdir()}
    leaked = server.names & names if known == 0 else set()
    return [f"left in shared memory: {name}" for name in sorted(leaked)]
