"""``benchmarks/gpu_memory.py`` without a GPU."""

from types import SimpleNamespace

import pytest

from benchmarks import gpu_memory


@pytest.mark.parametrize(
    ("printed", "bytes_"),
    [
        ("1000\n24\n", 1024 * 2**20),
        ("0\n", 0),
        ("", None),
        ("[Insufficient Permissions]\n", None),
        ("NVIDIA-SMI has failed\n", None),
        (None, None),
    ],
)
def test_memory_as_the_driver_says_it(monkeypatch, printed, bytes_):
    def run(*_, **__):
        if printed is None:
            raise FileNotFoundError
        return SimpleNamespace(stdout=printed)

    monkeypatch.setattr(gpu_memory.subprocess, "run", run)
    assert gpu_memory.used_bytes() == bytes_


def test_memory_as_max_says_it_where_the_driver_does_not(monkeypatch):
    def accelerator():
        return SimpleNamespace(stats={"total_memory": 80, "free_memory": 30})

    monkeypatch.setattr(gpu_memory, "used_bytes", lambda: None)
    monkeypatch.setattr("max.driver.Accelerator", accelerator)
    assert gpu_memory.taken_bytes(None, is_max=True) == 50
    # To ask would take memory in torch's process.
    assert gpu_memory.taken_bytes(None, is_max=False) is None
    # A driver that fails now costs no rates.
    monkeypatch.setattr("max.driver.Accelerator", lambda: 1 / 0)
    assert gpu_memory.taken_bytes(None, is_max=True) is None
