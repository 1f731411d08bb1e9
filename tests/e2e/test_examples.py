"""Every example runs as its first lines say."""

import re
import sys

import pytest

from tests.e2e.conftest import run_python
from workbench.demo import GGUF, ROOT


def test_there_is_a_test_for_each():
    # chat_client.py needs a server: test_serve.py; agent.py too: test_serve_tools.py.
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == {
        "agent.py",
        "chat_client.py",
        "generate.py",
        "logits.py",
    }


def test_generate(demo_model):
    result = run_python(
        "examples/generate.py",
        demo_model,
        "What is the capital of France? Answer in one sentence.",
        "What is two plus two?",
        *("--max-length", "2048", "--weight-path", GGUF),
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.strip().splitlines()[-2:]
    assert "Paris" in first
    assert "4" in second or "four" in second


def test_logits(demo_model):
    result = run_python(
        "examples/logits.py",
        *(demo_model, "The capital of France is"),
        *("--max-length", "2048", "--weight-path", GGUF),
    )
    assert result.returncode == 0, result.stderr
    steps = re.findall(r"step \d: '([^']*)' (0\.\d+)", result.stdout)
    assert len(steps) == 4
    assert steps[0][0] == " Paris"
    assert (
        result.stdout.strip()
        .splitlines()[-1]
        .startswith("The capital of France is Paris")
    )


# Runs the example whose name and arguments follow, then counts its threads.
IDLE_THREADS = """
import os, runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
threads = [int(name) for name in os.listdir("/proc/self/task")]
idle = [t for t in threads if os.sched_getscheduler(t) == os.SCHED_IDLE]
print("idle:", len(idle), "of", len(threads))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has SCHED_IDLE")
def test_one_thread_of_maxs_waits_for_the_others(demo_model):
    result = run_python(
        *("-c", IDLE_THREADS, "examples/logits.py"),
        *(demo_model, "The capital of France is"),
        *("--max-length", "2048", "--weight-path", GGUF),
    )
    assert result.returncode == 0, result.stderr
    # None of those that compute, which start before the first step.
    assert re.search(r"^idle: 1 of \d+$", result.stdout, re.MULTILINE), result.stdout
