"""Where the ``max`` command is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def max_program() -> str | None:
    """Returns the ``max`` beside this Python, else the one on PATH, if any."""
    beside = Path(sys.executable).parent / "max"
    return str(beside) if beside.exists() else shutil.which("max")
