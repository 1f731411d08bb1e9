"""``benchmarks/serving_servers.py`` with small programs in place of servers."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from benchmarks import gpu_memory
from benchmarks import serving_servers as servers
from benchmarks.serving_stream import ServingError
from tests.gpu_checks import wait_until
from tests.unit.fake_server import serving, taken_port

# Answers a look at its health, and has a child that SIGTERM does not end.
HEALTHY = """
import signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "999"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("loading 7 layers", flush=True)
assert sys.argv[1:4] == ["--host", "127.0.0.1", "--port"]
HTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""


def test_each_engines_command(monkeypatch):
    monkeypatch.setattr(servers, "max_program", lambda: "/bin/max")
    monkeypatch.setattr(servers, "vllm_program", lambda: "/bin/vllm")
    ours, theirs, vllm = (
        servers.command(name, "model", longest=384, users=8)
        for name in (servers.OURS, servers.BUILT_IN, servers.VLLM)
    )
    sizes = ["--model", "model", "--max-length", "384", "--max-batch-size", "8"]
    custom = ["--custom-architectures", "max_mistral"]
    assert ours == ["/bin/max", "serve", *custom, *sizes]
    assert theirs == ["/bin/max", "serve", *sizes]
    sizes = ["--max-model-len", "384", "--max-num-seqs", "8"]
    assert vllm == ["/bin/vllm", "serve", "model", *sizes]


def test_vllm_is_beside_this_python_or_on_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert servers.vllm_program() is None
    (tmp_path / "other").mkdir()
    for place in (tmp_path / "other", tmp_path):
        (place / "vllm").touch(mode=0o755)
        assert servers.vllm_program() == str(place / "vllm")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(servers, "LEFT_SECONDS", 0.1)


def test_a_server_ends_with_all_that_it_has_started():
    words = [sys.executable, "-c", HEALTHY]
    with servers.server(words, on_gpu=False) as running:
        family = servers.processes(running.pid)
        assert len(family) == 2
        assert list(running.memory()) == ["resident memory, GB"]
    assert not [one for one in family if one.is_running() and alive(one)]


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_server_printed_last_is_said():
    words = [sys.executable, "-c", "print('no such model'); raise SystemExit(1)"]
    with (
        pytest.raises(
            ServingError, match=r"ended before it was ready(.|\n)*such model"
        ),
        servers.server(words, on_gpu=False),
    ):
        pass
    words = [sys.executable, "-c", HEALTHY]
    with (
        pytest.raises(ServingError, match=r"refused(.|\n)*printed last:\nloading 7"),
        servers.server(words, on_gpu=False),
    ):
        raise ServingError("refused")


def test_what_a_server_prints_is_there_whatever_ends_its_benchmark(tmp_path):
    log = tmp_path / "server.log"
    code = "print('compiling', flush=True); import time; time.sleep(99)"
    start = f"import sys; from pathlib import Path; from {servers.__name__} import *; "
    start += f"server([sys.executable, '-c', {code!r}], False, Path({str(log)!r}))"
    benchmark = subprocess.Popen(
        [sys.executable, "-c", f"{start}.__enter__()"],
        # Without what MAX's engine exports, of which Python knows nothing.
        env=dict(os.environ),
        process_group=0,
    )
    try:
        wait_until(lambda: log.exists() and "compiling" in log.read_text())
    finally:
        os.killpg(benchmark.pid, signal.SIGKILL)
        benchmark.wait()
    assert log.read_text() == "compiling\n"


def test_a_server_that_is_never_ready(monkeypatch):
    monkeypatch.setattr(servers, "START_SECONDS", 0)
    words = [sys.executable, "-c", "import time; time.sleep(99)"]
    with (
        pytest.raises(ServingError, match="not ready after 0 s"),
        servers.server(words, on_gpu=False),
    ):
        pass


def test_the_version_is_what_the_server_says():
    with serving() as fake:
        running = servers.Server(fake.root, 1, False, None)
        assert running.version() == "1.2.3"
    with taken_port() as port:
        running = servers.Server(f"http://127.0.0.1:{port}", 1, False, None)
        assert running.version() == "unknown"


# Its child has 200 MB, which it says when it has written to them.
NESTED = """
import subprocess, sys
child = "data = b'1' * 200_000_000; print(flush=True); input()"
subprocess.run([sys.executable, "-c", child])
"""


def test_memory_on_a_cpu_is_that_of_all_processes():
    with subprocess.Popen(
        [sys.executable, "-c", NESTED],
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        running = servers.Server("", process.pid, False, None)
        ((name, value),) = running.memory().items()
        process.stdin.close()
    assert name == "resident memory, GB"
    assert 0.2 < value < 0.4
    assert running.memory() == {name: 0.0}


def says(text):
    """A command that prints this, as nvidia-smi does."""
    return [sys.executable, "-c", f"print({text!r})"]


def test_memory_on_a_gpu_is_what_came_on_top(monkeypatch):
    monkeypatch.setattr(gpu_memory, "_ASK", says("300\n20000"))
    assert servers.used_bytes() == 20300 * 2**20
    running = servers.Server("", 1, True, 300 * 2**20)
    assert running.memory() == {"GPU memory, GB": 20000 * 2**20 / 1e9}


@pytest.mark.parametrize(
    "words",
    [says("[N/A]"), [sys.executable, "-c", "exit(9)"], ["/no/nvidia-smi"]],
    ids=["shared memory", "no driver", "no command"],
)
def test_memory_on_a_gpu_is_left_out_where_it_is_not_known(monkeypatch, words):
    monkeypatch.setattr(gpu_memory, "_ASK", words)
    assert servers.used_bytes() is None
    # Not that of the processes, which is another memory.
    assert servers.Server("", os.getpid(), True, None).memory() == {}
    assert servers.Server("", os.getpid(), True, 1).memory() == {}


def test_the_most_of_what_was_seen(monkeypatch):
    monkeypatch.setattr(servers, "LOOK_SECONDS", 0.01)
    looks = iter([1.0, 5.0])
    seen = threading.Event()

    def look():
        if (value := next(looks, None)) is None:
            seen.set()
        return {"GB": value or 2.0}

    with servers.most(look) as found:
        assert seen.wait(60)
    assert found == {"GB": 5.0}
    monkeypatch.setattr(servers, "LOOK_SECONDS", 99)
    with servers.most(lambda: {"GB": 3.0}) as found:
        pass
    assert found == {"GB": 3.0}  # at the end at the latest
