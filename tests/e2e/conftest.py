"""The real ``max`` command line and server, in processes of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from max_mistral.prepare import prepare

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "build" / "smollm2"
# As in the Makefile, so that demo, server and tests share one compiled graph.
DEMO_FLAGS = [
    *("--custom-architectures", "max_mistral"),
    *("--devices", "cpu"),
    *("--quantization-encoding", "float32"),
    *("--max-length", "2048"),
]
STARTUP_SECONDS = 600


def environment():
    """This process's environment, spelt out: MAX's engine, once imported,
    exports a PYTHONEXECUTABLE that sends a child to the wrong installation."""
    return dict(os.environ) | {"PYTHONWARNINGS": "ignore:The parameter:UserWarning"}


def run_python(*args, cwd=ROOT, timeout=STARTUP_SECONDS):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def max_command():
    return str(Path(sys.executable).parent / "max")


def run_max(*args, timeout=STARTUP_SECONDS, **kwargs):
    return subprocess.run(
        [max_command(), *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **kwargs,
    )


@contextlib.contextmanager
def serve(*args):
    """Starts ``max serve`` and yields its URL; then SIGTERM must end it cleanly."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [max_command(), "serve", *map(str, args)]
        + ["--host", "127.0.0.1", "--port", str(port)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.set_blocking(process.stdout.fileno(), False)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/v1/health")
        yield f"http://127.0.0.1:{port}/v1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    finally:
        process.kill()


def wait_until_healthy(process, url):
    log = ""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        log += process.stdout.read() or ""
        assert process.poll() is None, f"the server ended:\n{log[-4000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.5)
    raise TimeoutError(f"the server did not start:\n{log[-4000:]}")


@pytest.fixture(scope="session")
def demo_model():
    """SmolLM2-135M-Instruct as ``make demo`` prepares it."""
    if not DEMO.exists():
        gguf = ROOT / "build" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        if not gguf.exists():
            run_python("scripts/fetch_demo_model.py", gguf).check_returncode()
        prepare(gguf, DEMO)
    return DEMO
