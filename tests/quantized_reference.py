"""What Hugging Face transformers makes of the quantized checkpoints it can read.

The committed golden is made here, from the seeded checkpoints:

    pip install torch==2.13.0 accelerate compressed-tensors
    python -m tests.quantized_reference

It holds a hash of each projection in float32, weight times scale, which is the
same to the bit on any machine.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np

from workbench.quantized import LAYOUTS, write_quantized
from workbench.quantizers import Array

GOLDEN = Path(__file__).parent / "fixtures" / "quantized.json"
_COMPRESSED = ("channel", "compressed_static", "nvfp4")
# transformers' own names for the scales; a scale it does not know it leaves out.
NAMES = ("static", "block", *_COMPRESSED)


def digest(weight: Array) -> str:
    """Returns a hash of a weight in float32."""
    data = np.ascontiguousarray(weight, np.float32)
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


def main() -> None:
    """Makes the golden anew."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    golden = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            write_quantized(Path(folder), LAYOUTS[name])
            # Without a GPU it dequantizes FP8, and the others if asked.
            asked = {}
            if name in _COMPRESSED:
                config = CompressedTensorsConfig(run_compressed=False)
                asked["quantization_config"] = config
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, **asked
            )
        golden[name] = {
            key: digest(tensor.float().numpy())
            for key, tensor in model.state_dict().items()
            if key.endswith("_proj.weight")
        }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
