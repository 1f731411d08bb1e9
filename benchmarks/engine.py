"""Engines in processes of their own, of which one runs at a time."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def _end_with_the_parent() -> None:
    """Has Linux kill this process with its parent: a stopped one would stay."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Stopped:
    """A worker on an engine, stopped except while it measures.

    So engines can take turns of a few seconds, in which the machine is as fast
    for one as for the other, without loading their model each time.

    Args:
        engine: Its name.
        folder: The model.
        gguf: Its weights, if not those in ``folder``.
        environment: Variables to set beside this process's.
        cwd: The checkout to run; by default this process's.
        command: What to run on ``folder`` and ``gguf``; by default
            ``benchmarks.worker``.
    """

    def __init__(
        self,
        engine: str,
        folder: Path,
        gguf: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        default = [sys.executable, "-m", "benchmarks.worker", engine]
        self.engine = engine
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*(command or default), *(str(path) for path in (folder, gguf) if path)],
            env=dict(os.environ) | dict(environment or {}),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            preexec_fn=_end_with_the_parent if sys.platform == "linux" else None,
        )
        self._answer("loaded")
        self.process.send_signal(signal.SIGSTOP)

    def rate(self, measure: str, *numbers: int) -> float:
        """Returns tokens a second; see ``benchmarks.measure.rate``.

        Args:
            measure: Its name.
            numbers: What it is, for a worker that does not know the name.
        """
        return self.ask(measure, *numbers)

    def ask(self, what: str, *numbers: int) -> Any:
        """Has the worker run for as long as it takes; returns what it answers."""
        self.process.send_signal(signal.SIGCONT)
        self._send(" ".join([what, *map(str, numbers)]))
        found = self._answer(what)
        self.process.send_signal(signal.SIGSTOP)
        return found

    def finish(self) -> dict[str, float]:
        """Ends the process; returns its bytes and seconds."""
        self.process.send_signal(signal.SIGCONT)
        self._send("end")
        found = self._answer("end")
        self.process.wait()
        return found

    def kill(self) -> None:
        """Ends the process at once; a stopped one would stay."""
        self.process.kill()

    def _send(self, what: str) -> None:
        assert self.process.stdin is not None
        # Of one that is gone the answer's absence tells.
        with suppress(BrokenPipeError):
            print(what, file=self.process.stdin, flush=True)

    def _answer(self, what: str) -> Any:
        """Returns the value of the next line ``{what: value}``; exits without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Engines print lines of their own, too.
            if line.startswith(f'{{"{what}":'):
                return json.loads(line)[what]
        status = self.process.wait()
        # Of an instruction that the CPU does not have there is nothing else to read.
        how = signal.strsignal(-status) if status < 0 else f"exit status {status}"
        self.errors.seek(0)
        sys.exit(f"{self.engine} failed ({how}):\n{self.errors.read()[-3000:]}")


def work(answer: Callable[[str, int, int], Any]) -> None:
    """In a worker's process: answers lines of a name and two numbers, until its end.

    Args:
        answer: Of the line; what it returns is printed as JSON.
    """
    for line in sys.stdin:
        if line.strip() == "end":
            break
        name, *numbers = line.rsplit(maxsplit=2)
        first, second = map(int, numbers)
        print(json.dumps({name: answer(name, first, second)}), flush=True)
    print(json.dumps({"end": {}}))
