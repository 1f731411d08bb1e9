"""The max-mistral command in a process that stays. Nothing compiles.

``machine`` is for all tests of this folder.
"""

import os

import pytest

from max_mistral import command
from max_mistral.command import memory, picks
from tests.commands import PLENTY
from tests.unit.test_gguf import write_gguf
from workbench.checkpoints import BASE, write_checkpoint


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with memory and no GPU, and a cache that is no one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MAX_MISTRAL_KERNELS", raising=False)
    monkeypatch.setattr(picks, "accelerator_count", lambda: 0)
    monkeypatch.setattr(memory, "free_memory", lambda: PLENTY)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; returns its status, the command of max, and stderr."""

    def run(*arguments):
        executed = []

        def execve(program, command, environment):
            executed.append(command)
            raise SystemExit(0)

        monkeypatch.setattr(os, "execve", execve)
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        return ended.value.code, (executed or [[]])[0], capsys.readouterr().err

    return run


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "model.Q4_K_M.gguf")


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "hf", BASE, dtype="bfloat16")
