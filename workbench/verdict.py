"""What a step of ``scripts/check_gpu.py`` says beside yes or no, its exit status.

Imports nothing but Python's own, for that script reads it too.
"""

from __future__ import annotations

import re

LEFT_OUT = 77
"""The exit status where the question cannot be asked here, as in automake's tests."""
_BEGIN = "VERDICT: "
# pytest puts an E before it.
_RAISED = re.compile(r"(E\s+)?[\w.]+(Error|Exception|Interrupt|Exit): ")


def say(answer: str) -> None:
    """Prints a step's answer, in a line that the report has instead of "yes"."""
    print(_BEGIN + " ".join(answer.split()), flush=True)


def said(output: str) -> str:
    """Returns the last answer in what a step has printed; ``""`` if it has none."""
    answers = [line for line in output.splitlines() if line.startswith(_BEGIN)]
    return answers[-1].removeprefix(_BEGIN) if answers else ""


def cause(output: str) -> str:
    """Returns the line of an output that says best why a program has ended.

    The error's, of which MAX's go on for lines with hints; else the last one.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or ["it printed nothing"])[-1]
