"""Workers of a benchmark, which stand still while others measure."""

import subprocess
import sys
import time

import psutil

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


def test_they_end_with_a_benchmark_that_is_killed():
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, text=True
    )
    try:
        worker = psutil.Process(int(benchmark.stdout.readline()))
        while worker.status() != psutil.STATUS_STOPPED:  # in a moment
            time.sleep(0.01)
    finally:
        benchmark.kill()
        benchmark.communicate()
    _, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive
