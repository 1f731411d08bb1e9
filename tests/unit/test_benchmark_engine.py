"""Workers of a benchmark, which stand still while others measure."""

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.engine import Stopped
from workbench.demo import ROOT

WORKER = """
import sys
print('{"loaded": 1}', flush=True)
sys.stdin.read()
"""
BENCHMARK = f"""
import sys, time
from pathlib import Path
from benchmarks.engine import Stopped
worker = Stopped("any", Path("."), command=[sys.executable, "-c", {WORKER!r}])
print(worker.process.pid, flush=True)
time.sleep(600)
"""


def wait_until_it_stands(process):
    """A stopped process goes on for a moment."""
    end = time.monotonic() + 30
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end, process.status()
        time.sleep(0.01)


def test_they_end_with_a_benchmark_that_is_killed():
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, text=True
    )
    try:
        worker = psutil.Process(int(benchmark.stdout.readline()))
        wait_until_it_stands(worker)
    finally:
        benchmark.kill()
        benchmark.communicate()
    _, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive


# Answers with the sum of two numbers, and ends at a nought.
SUMS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.engine import work
print('{{"loaded": 1}}', flush=True)
print("a line of the engine's own", flush=True)
work(lambda name, a, b: [name, a + b] if a else sys.exit("no nought"))
"""


def test_a_worker_answers_what_it_is_asked(tmp_path):
    worker = Stopped("sums", tmp_path, command=[sys.executable, "-c", SUMS])
    try:
        assert worker.ask("2 of 3", 2, 3) == ["2 of 3", 5]
        wait_until_it_stands(psutil.Process(worker.process.pid))
        with pytest.raises(
            SystemExit, match=r"sums failed \(exit status 1\):\nno nought"
        ):
            worker.ask("nought", 0, 0)
    finally:
        worker.kill()
        worker.process.communicate()


def test_a_worker_that_is_gone_is_said(tmp_path):
    worker = Stopped("sums", tmp_path, command=[sys.executable, "-c", SUMS])
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(SystemExit, match=r"sums failed \(Killed\)"):
        worker.finish()
    worker.process.communicate()
