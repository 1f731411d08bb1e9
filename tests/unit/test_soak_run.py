"""The soak's course: servers that die, stay, or leave things behind."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from tests.soak import __main__ as program
from tests.soak import ends, run
from tests.soak.checks import Outcome, Sample, Tally
from tests.soak.run import ROUNDS, WARM_UP, Report, shares, soak
from tests.soak.server import Server

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /dev/shm")


def test_shares_are_all_there_is():
    assert shares(10_000, 3) == [3333, 3333, 3334]
    assert sum(shares(125, ROUNDS)) == 125


class FakeLoad:
    """Answers all; its server may die."""

    def __init__(self, dies=False):
        self.tally, self.wanted, self.dies = Tally(), {}, dies

    async def crowd(self):
        pass

    async def run(self, requests, seed, faults=True):
        self.tally.outcomes[Outcome.RIGHT] += requests

    async def collect(self):
        if self.dies:
            raise httpx.ConnectError("no one is there")
        return {}

    def bytes_a_request(self):
        return 300

    def stop(self):
        pass


@pytest.fixture
def fake_server(monkeypatch):
    """A server that soak() finds, and a load on it."""

    async def no_end(how, server, load, report):
        pass

    async def no_sleep(seconds):
        pass

    def use(load):
        server = SimpleNamespace(
            sample=lambda requests: Sample(requests, 10**9, 88, 37, 26),
            preemptions=lambda: 3,
        )

        @contextlib.asynccontextmanager
        async def loaded(folder, name):
            yield server, load

        monkeypatch.setattr(run, "loaded", loaded)
        monkeypatch.setattr(run, "write_model", lambda folder, setting: None)
        monkeypatch.setattr(run, "end", no_end)
        monkeypatch.setattr(run.asyncio, "sleep", no_sleep)

    return use


def test_a_run_sends_what_it_says(fake_server, tmp_path):
    fake_server(FakeLoad())
    report = Report()
    asyncio.run(soak(tmp_path, "full", 125, 5, report))
    assert report.outcomes.total() == 125
    assert (report.stopped, report.wrong) == ([], [])


def test_a_run_that_is_cut_says_so(fake_server, tmp_path):
    fake_server(FakeLoad())
    report = Report()
    asyncio.run(soak(tmp_path, "full", 120, -1, report))
    assert report.outcomes.total() == 10 * (WARM_UP + 3)
    assert report.stopped == [
        "full: stopped after 60 of 120 requests, for its -1 minutes were over"
    ]


@pytest.mark.parametrize(
    ("counts", "found"),
    [([90, 89, 88, 87], 88), ([90] * 29 + [89, 88], 89), ([89, 91] * 20, 89)],
    ids=["slowly closed", "too late", "kept"],
)
def test_files_that_are_closed_late_are_no_growth(fake_server, counts, found):
    fake_server(None)  # no waiting
    left = iter(counts)
    server = SimpleNamespace(sample=lambda n: Sample(n, 10**9, next(left), 37, 26))
    before = [Sample(0, 10**9, files, 37, 26) for files in (95, 88)]
    assert asyncio.run(run.settled(server, 7, before)).files == found
    # The first one is taken as it is.
    left = iter(counts)
    assert asyncio.run(run.settled(server, 7, [])).files == counts[0]


def test_what_was_found_outlives_the_server(fake_server, tmp_path):
    fake_server(FakeLoad(dies=True))
    report = Report()
    with report.noting("full"):
        asyncio.run(soak(tmp_path, "full", 120, 5, report))
    assert report.outcomes.total() == 120
    assert len(report.samples["full"]) == ROUNDS
    assert report.wrong == ["full: ConnectError('no one is there')"]


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """Runs the command line with another soak()."""

    def call(soak, *flags):
        async def kill(folder, name, what, report):
            report.kills += 1

        path = tmp_path / "new" / "soak.json"
        monkeypatch.setattr(program, "soak", soak)
        monkeypatch.setattr(program, "kill", kill)
        monkeypatch.setattr(sys, "argv", ["soak", "--json", str(path), *flags])
        status = program.main()
        return status, json.loads(path.read_text()), capsys.readouterr().out

    return call


async def dies(folder, name, requests, minutes, report):
    raise httpx.ConnectError("no one is there")


async def is_cut(folder, name, requests, minutes, report):
    report.stopped.append(f"{name}: stopped")


async def is_interrupted(folder, name, requests, minutes, report):
    raise KeyboardInterrupt


def test_the_report_is_written_whatever_happens(main):
    status, figures, printed = main(dies)
    assert status == 1
    assert figures["wrong"] == [
        f"{name}: ConnectError('no one is there')" for name in ("full", "window")
    ]
    assert figures["kills"] == 4
    assert printed.splitlines()[-1] == figures["wrong"][-1]
    assert {"date", "commit", "max", "hardware"} <= figures.keys()
    status, figures, _ = main(is_interrupted)
    assert (status, figures["wrong"]) == (1, ["interrupted"])


def test_a_cut_is_said_last(main):
    status, figures, printed = main(is_cut, "--settings", "full")
    assert (status, figures["stopped"]) == (0, ["full: stopped"])
    assert printed.rstrip().endswith("full: stopped")


def test_too_few_requests_are_refused(main, capsys):
    with pytest.raises(SystemExit) as end:
        main(is_cut, "--requests", "20")
    assert end.value.code == 2
    assert "give 240 or more" in capsys.readouterr().err


# Prints its helper's pid, its semaphore and its shared memory.
SERVER = """
import multiprocessing, signal, sys, time
from multiprocessing.shared_memory import SharedMemory
def helper(lock):
    time.sleep(99)
if __name__ == "__main__":
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    context = multiprocessing.get_context("spawn")
    lock, memory = context.Lock(), SharedMemory(create=True, size=64)
    process = context.Process(target=helper, args=(lock,))
    process.start()
    print("sem." + lock._semlock.name.strip("/"), memory.name, flush=True)
    time.sleep(99)
"""


@pytest.fixture
def server(tmp_path):
    """Starts a server's processes; what is left of them is killed."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=dict(os.environ),  # spelt out: see tests/e2e/conftest.py
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Server(process, "", None, None, None)
        started.append(found)
        found.said = lambda: ("", "")
        found.names = set(process.stdout.readline().split())
        found.shared_memory = lambda: found.names
        assert len(found.processes()) == 3  # with its helper and Python's tracker
        return found

    yield start
    for each in started:
        for process in each.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        each.process.communicate()
        for name in each.names:
            Path("/dev/shm", name).unlink(missing_ok=True)


@pytest.fixture
def load():
    return FakeLoad()


def main_is_killed(server, load, monkeypatch, worker):
    monkeypatch.setattr(Server, "worker", lambda self: worker)
    # Known orphans are waited for, in vain.
    wait = Server.wait
    monkeypatch.setattr(Server, "wait", lambda self, seconds: wait(self, 3))
    return asyncio.run(ends.kill_main(server, load))


@linux
def test_after_its_orphans_a_server_leaves_nothing(server, load, monkeypatch):
    started = server()
    assert main_is_killed(started, load, monkeypatch, None) == []
    assert not started.processes()
    assert not any(Path("/dev/shm", name).exists() for name in started.names)


@linux
def test_shared_memory_that_stays_is_found(server, load, monkeypatch):
    started = server()
    (tracker,) = [p for p in started.processes() if ends.TRACKER in str(p.cmdline())]
    tracker.kill()
    wrong = main_is_killed(started, load, monkeypatch, None)
    assert wrong == [f"left in shared memory: {name}" for name in sorted(started.names)]


@linux
def test_a_worker_is_no_known_orphan(server, load, monkeypatch):
    started = server()
    (worker,) = [p for p in started.processes() if "spawn_main" in str(p.cmdline())]
    wrong = main_is_killed(started, load, monkeypatch, worker)
    assert wrong[0] == "the model worker outlives its server"
    assert worker.is_running()


@linux
def test_a_server_that_ignores_sigterm_is_found(server, load, monkeypatch):
    monkeypatch.setattr(ends, "LIMIT", 1)
    wrong = asyncio.run(ends.sigterm(server("deaf"), load))
    assert sum(line.startswith("left behind") for line in wrong) == 3
    assert "the exit status is None" in wrong
