"""The servers of ``benchmarks/serving.py``, and the memory that each takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.gpu_memory import used_bytes
from benchmarks.serving_stream import ServingError
from max_mistral.command.program import max_program

OURS, BUILT_IN, VLLM = "max_mistral", "MAX", "vLLM"
START_SECONDS = 450
# How long its processes may take to end once it has ended.
LEFT_SECONDS = 5
# Between two looks at the memory.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Server:
    """One that answers."""

    root: str
    """Its URL."""
    pid: int
    on_gpu: bool
    gpu_before: int | None
    """The bytes in use on the machine's GPUs before, if ``nvidia-smi`` can say."""

    @property
    def completions(self) -> str:
        """Where to ask."""
        return f"{self.root}/v1/completions"

    def version(self) -> str:
        """Returns what it says of its version."""
        url = f"{self.root}/version"
        with (
            suppress(OSError, ValueError, KeyError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            return str(json.load(answer)["version"])
        return "unknown"

    def memory(self) -> dict[str, float]:
        """Returns the GB that it takes now, by where; nothing if that is not known."""
        if not self.on_gpu:
            return {"resident memory, GB": resident(self.pid) / 1e9}
        if self.gpu_before is None or (now := used_bytes()) is None:
            return {}
        return {"GPU memory, GB": (now - self.gpu_before) / 1e9}


def vllm_program() -> str | None:
    """Returns the ``vllm`` beside this Python, else the one on PATH, if any.

    On PATH it may be of another environment: vLLM and MAX need not share theirs.
    """
    beside = Path(sys.executable).parent / "vllm"
    return str(beside) if beside.exists() else shutil.which("vllm")


def command(engine: str, model: str, longest: int, users: int) -> list[str]:
    """Returns what starts an engine's server, for so many users.

    Args:
        engine: ``OURS``, ``BUILT_IN`` or ``VLLM``.
        model: A folder, or a name on the Hub.
        longest: The tokens of a prompt and its answer.
        users: At a time.
    """
    if engine == VLLM:
        sizes = ["--max-model-len", str(longest), "--max-num-seqs", str(users)]
        return [vllm_program() or "vllm", "serve", model, *sizes]
    words = [max_program() or "max", "serve"]
    if engine == OURS:
        words += ["--custom-architectures", "max_mistral"]
    sizes = ["--max-length", str(longest), "--max-batch-size", str(users)]
    return [*words, "--model", model, *sizes]


@contextmanager
def server(
    words: list[str], on_gpu: bool, log_path: Path | None = None
) -> Iterator[Server]:
    """Starts a server and ends it, with all processes that it has started.

    Args:
        words: Its command.
        on_gpu: Whether it runs on one.
        log_path: A file for what it prints, which is there whatever ends this process.

    Raises:
        ServingError: if it does not start; and to one of the body it adds what the
            server printed last.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*words, "--host", "127.0.0.1", "--port", str(port)]
    root = f"http://127.0.0.1:{port}"
    before = used_bytes() if on_gpu else None
    with (
        log_path.open("w+", errors="replace")
        if log_path is not None
        else tempfile.TemporaryFile("w+", errors="replace")
    ) as log:
        process = subprocess.Popen(
            words, env=dict(os.environ), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_healthy(process, f"{root}/health")
            yield Server(root, process.pid, on_gpu, before)
        except ServingError as error:
            log.seek(0)
            said = log.read()[-3000:]
            raise ServingError(f"{error}\nIt printed last:\n{said}") from None
        finally:
            end(process)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    """Returns when a server answers.

    Raises:
        ServingError: if it ends before, or is not there after ``START_SECONDS``.
    """
    deadline = time.monotonic() + START_SECONDS
    while not healthy(url):
        if process.poll() is not None:
            raise ServingError("The server ended before it was ready.")
        if time.monotonic() > deadline:
            raise ServingError(f"The server was not ready after {START_SECONDS} s.")
        time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, and those of its processes that it leaves behind."""
    family = processes(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    # They would keep the memory, which the next server needs.
    _, left = psutil.wait_procs(family, timeout=LEFT_SECONDS)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=30)
    process.wait()


def healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def processes(pid: int) -> list[psutil.Process]:
    """Returns a process and all that it has started and that still run."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def resident(pid: int) -> int:
    """Returns the bytes of memory that a server's processes have.

    On Linux what several of them share is divided among them, so that it counts once.
    """
    total = 0
    for one in processes(pid):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found = one.memory_full_info() if psutil.LINUX else one.memory_info()
            total += getattr(found, "pss", found.rss)
    return total


@contextmanager
def most(look: Callable[[], dict[str, float]]) -> Iterator[dict[str, float]]:
    """Looks again and again while the body runs; yields the most of each value."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while True:
            is_last = ended.wait(LOOK_SECONDS)
            for name, value in look().items():
                found[name] = max(value, found.get(name, value))
            if is_last:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
