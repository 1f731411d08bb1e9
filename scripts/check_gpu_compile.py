"""Compile the graph for GPUs, on a machine that need not have one.

    python scripts/check_gpu_compile.py

compiles a tiny Mistral in bfloat16 for an H100, on one device and
tensor-parallel on two, with ``max warm-cache``. Two to three minutes each the
first time.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.checkpoints import BASE, write_checkpoint

TARGET = "cuda:sm_90a"
DEVICES = ("gpu:0", "gpu:0,1")
# Two key-value heads, one a device.
CONFIG = BASE | {"num_key_value_heads": 2, "hidden_size": 128, "head_dim": 64}


def main() -> None:
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder), CONFIG, dtype="bfloat16")
        for devices in DEVICES:
            print(f"Compiling for {devices} ({TARGET}) ...", flush=True)
            command = [
                str(Path(sys.executable).parent / "max"),
                "warm-cache",
                *("--custom-architectures", "max_mistral"),
                *("--model", str(model)),
                *("--devices", devices),
                *("--target", TARGET),
                *("--max-length", "256"),
            ]
            # MAX's engine, once imported, exports a PYTHONEXECUTABLE that
            # sends a child Python to the wrong installation.
            if subprocess.run(command, env=dict(os.environ)).returncode:
                failed.append(devices)
    if failed:
        sys.exit(f"Did not compile for {' and '.join(failed)}.")
    print(f"Compiled for {' and '.join(DEVICES)} ({TARGET}).")


if __name__ == "__main__":
    main()
