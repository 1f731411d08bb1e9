"""The real ``max`` command line and server, in processes of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import psutil

from max_mistral.command.program import max_program
from workbench.demo import GGUF, ROOT

# As in the Makefile, so that demo, server and tests share one compiled graph.
DEMO_FLAGS = [
    *("--custom-architectures", "max_mistral"),
    *("--devices", "cpu"),
    *("--weight-path", str(GGUF)),
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
    return max_program() or "max"


def run_max(*args, timeout=STARTUP_SECONDS, **kwargs):
    return subprocess.run(
        [max_command(), *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **kwargs,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serve(*args):
    """Starts ``max serve`` and yields its URL; then SIGTERM must end it cleanly."""
    port = free_port()
    # A file: a pipe that nobody empties would block the server.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [max_command(), "serve", *map(str, args)]
            + ["--host", "127.0.0.1", "--port", str(port)],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}/v1/health", log)
            yield f"http://127.0.0.1:{port}/v1"
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            # 0, or "ended by SIGTERM" as a shell (143) or Python (-15) says it.
            assert process.wait(timeout=60) in (0, 143, -signal.SIGTERM)
            _, alive = psutil.wait_procs(workers, timeout=30)
            assert not alive
        finally:
            process.kill()


def wait_until_healthy(process, url, log):
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{tail(log)}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.5)
    raise TimeoutError(f"the server did not start:\n{tail(log)}")


def tail(log):
    log.seek(0)
    return log.read()[-4000:]
