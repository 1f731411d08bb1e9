"""Runs a step of ``scripts/check_gpu.py``, and ends it with all that it has started."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from scripts.gpu_steps import PYTHON, ROOT, Step
from workbench import check_device
from workbench.verdict import LEFT_OUT, cause, said

VARIABLES = {
    "MODULAR_TELEMETRY_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
    # What a step prints is here at once, and not lost if it has to be ended.
    "PYTHONUNBUFFERED": "1",
}
# How the names begin of variables that choose what a model runs on. A step sets its
# own: with the shell's it would ask another question than it says.
CHOICES = ("MAX_MISTRAL_", "MAX_SERVE_USE_VENDOR_BLAS")
Verdict = Literal["yes", "no", "too slow", "left out", "no time left"]
UNSETTLED = ("too slow", "no time left")
"""Verdicts that say nothing of the question: it is asked again."""


@dataclass
class Result:
    """What came of a step."""

    verdict: Verdict
    seconds: float
    command: str
    output: str
    """The last lines; of a step that prints figures, those."""
    said: str = ""
    """Its own answer in a line, where yes would say too little."""

    @property
    def answer(self) -> str:
        """What answers the question in the report."""
        if self.verdict == "yes":
            return self.said or self.verdict
        return f"{self.verdict}: {self.said or cause(self.output)[:200]}"


def run(step: Step, dry: bool, seconds: float, is_alone: bool = True) -> Result:
    """Runs a step, and ends all its processes when its time is over."""
    command = (step.dry or step.command) if dry else step.command
    variables = {k: v for k, v in os.environ.items() if not k.startswith(CHOICES)}
    variables |= VARIABLES
    if dry:
        variables[check_device.VARIABLE] = "cpu"
    variables["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    if not is_alone:
        share = "MODULAR_DEVICE_CONTEXT_MEMORY_MANAGER_SIZE_PERCENT"
        variables[share] = str(step.share)
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Not a session: what ends this script's session ends the steps' too.
        process_group=0,
    )
    running.add(process)
    verdict: Verdict
    try:
        output, _ = process.communicate(timeout=seconds)
        verdict = judge(command, process.returncode, output)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        verdict = "too slow"
    running.discard(process)
    words = [f"{k}={v}" for k, v in step.environment.items()] + command
    words = ["python" if word == PYTHON else word for word in words]
    return Result(
        verdict,
        time.monotonic() - start,
        shlex.join(words),
        output[-6000:].strip(),
        said(output),
    )


running: set[subprocess.Popen[str]] = set()
"""The steps of now."""


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a step and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop(number: int, frame: object) -> None:
    """A signal's handler: ends the steps, then this process."""
    for process in list(running):
        kill(process)
    # Not sys.exit, which would wait for the other threads' steps.
    os._exit(128 + number)


def judge(command: list[str], status: int, output: str) -> Verdict:
    """Returns what a step's exit status says.

    Of pytest also its last line: it exits with 0 where all tests were skipped. Where
    none were found, by 5, the step does not ask what it should.
    """
    if status == LEFT_OUT:
        return "left out"
    if status == 0 and "pytest" in command:
        last = (output.strip().splitlines() or [""])[-1]
        return "left out" if " skipped" in last and " passed" not in last else "yes"
    return "no" if status else "yes"
