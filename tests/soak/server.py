"""The server under test: its command, its processes, and what it may leave behind."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from max.driver import CPU

from tests.e2e.conftest import (
    environment,
    free_port,
    max_command,
    tail,
    wait_until_healthy,
)
from tests.soak.checks import LIMIT, Sample
from tests.vocabularies import write_vocabulary
from workbench.checkpoints import CONFIGS

PAGE = 128  # tokens


@dataclass(frozen=True)
class Setting:
    """A model, and a server of it that has too few KV pages for a full batch.

    Args:
        config: Which of ``CONFIGS``.
        max_length: Of a sequence, in tokens.
        chunk: How many tokens of prompts a step reads.
        pages: About how many KV pages there are. A full batch of the longest
            sequences would take ``BATCH * max_length / PAGE`` a cache.
    """

    config: str
    max_length: int
    chunk: int
    pages: int


BATCH = 8
SETTINGS = {
    "full": Setting("gqa", max_length=256, chunk=64, pages=7),
    # A window on three of four layers, so two caches.
    "window": Setting("ministral", max_length=512, chunk=128, pages=12),
}


@dataclass
class Server:
    """A running server.

    Args:
        process: The main process.
        url: Of its API.
        setting: What it serves.
        stdout: Its file.
        stderr: Its file.
    """

    process: subprocess.Popen[str]
    url: str
    setting: Setting
    stdout: Any
    stderr: Any
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def processes(self) -> list[psutil.Process]:
        """The processes of the server that run now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            for process in [main, *main.children(recursive=True)]:
                self.seen.setdefault(process.pid, process)
        return [p for p in self.seen.values() if _runs(p)]

    def worker(self) -> psutil.Process:
        """The process that has the model: the largest of the helpers."""
        helpers = [p for p in self.processes() if p.pid != self.process.pid]
        return max(helpers, key=lambda p: p.memory_info().rss)

    def wait(self, seconds: float) -> list[psutil.Process]:
        """Waits for all processes; returns those that are there after ``seconds``."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def shared_memory(self) -> set[str]:
        """The names in shared memory that its processes have used so far."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self.names |= set(re.findall(r"/dev/shm/(\S+)", maps))
        return self.names

    def sample(self, requests: int) -> Sample:
        """Returns what its processes hold, after so many requests."""
        processes = self.processes()
        return Sample(
            requests,
            memory=sum(p.memory_info().rss for p in processes),
            files=sum(p.num_fds() for p in processes),
            threads=sum(p.num_threads() for p in processes),
            shared=len(self.shared_memory()),
        )

    def preemptions(self) -> int:
        """How many requests had to give their KV pages to others."""
        found = re.findall(r"All Preemptions: (\d+) reqs", self.said()[1])
        return int(found[-1]) if found else 0

    def said(self) -> tuple[str, str]:
        """What it wrote so far: the standard output and the errors."""
        texts = []
        for file in (self.stdout, self.stderr):
            file.seek(0)
            texts.append(file.read())
        return texts[0], texts[1]


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def write_model(folder: Path, setting: Setting) -> Path:
    """Writes a tiny seeded model whose chat template has tools."""
    return write_vocabulary(folder, "v3", CONFIGS[setting.config])


def memory_share(folder: Path, setting: Setting) -> float:
    """The part of the memory that holds the weights and ``pages`` KV pages."""
    config = CONFIGS[setting.config]
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    page = 2 * numbers * config["head_dim"] * PAGE  # bfloat16
    weights = (folder / "model.safetensors").stat().st_size
    return (weights + setting.pages * page) / CPU().stats["free_memory"]


def patient_environment() -> dict[str, str]:
    """One in which SIGTERM waits for every request that is open."""
    return environment() | {"MAX_SERVE_GRACEFUL_SHUTDOWN_TIMEOUT_S": str(LIMIT)}


@contextlib.contextmanager
def start(folder: Path, setting: Setting) -> Iterator[Server]:
    """Starts ``max serve``; whatever of it is left in the end is killed."""
    port = free_port()
    command = [
        *(max_command(), "serve", "--host", "127.0.0.1", "--port", str(port)),
        *("--custom-architectures", "max_mistral", "--model", str(folder)),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--max-length", str(setting.max_length), "--max-batch-size", str(BATCH)),
        *("--enable-echo", "--enable-chunked-prefill", "--enable-prefix-caching"),
        *("--max-batch-input-tokens", str(setting.chunk)),
        *("--device-memory-utilization", str(memory_share(folder, setting))),
    ]
    with (
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        process = subprocess.Popen(
            command, env=patient_environment(), stdout=stdout, stderr=stderr, text=True
        )
        url = f"http://127.0.0.1:{port}/v1"
        server = Server(process, url, setting, stdout, stderr)
        try:
            wait_until_healthy(process, f"{url}/health", stderr)
            yield server
        except BaseException:
            print(tail(stderr))
            raise
        finally:
            for each in server.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
