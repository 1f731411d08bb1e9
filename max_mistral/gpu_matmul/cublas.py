"""NVIDIA's cuBLAS, which MAX loads by its name and does not bring."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

INSTALL = "pip install 'nvidia-cublas>=13,<14'"
"""The command that installs it."""

# MAX tries these, in this order.
_PACKAGES = {13: "nvidia-cublas", 12: "nvidia-cublas-cu12"}
# Where NVIDIA's installers put it, each version's of its own; MAX tries them too.
_CUDA = {13: ("cuda-13.1", "cuda-13.0", "cuda"), 12: ("cuda-12.8", "cuda")}


def load_cublas() -> str | None:
    """Loads cuBLAS, of the system or of NVIDIA's package, for MAX to find.

    MAX opens it by its name, which gives it what this process has open.

    Returns:
        What was loaded; ``None`` if there is none.
    """
    for major, package in _PACKAGES.items():
        names = [f"{stem}.so.{major}" for stem in ("libcublasLt", "libcublas")]
        for folder in _folders(package, major):
            paths = [str(folder / name) if folder else name for name in names]
            try:
                for path in paths:
                    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return paths[-1]
    return None


def _folders(package: str, major: int) -> Iterator[Path | None]:
    """Where to look; ``None`` is where the system does."""
    yield None
    for cuda in _CUDA[major]:
        yield Path("/usr/local") / cuda / "lib64"
    try:
        installed = files(package) or []
    except PackageNotFoundError:
        return
    for file in installed:
        if file.name.startswith("libcublas.so."):
            yield Path(str(file.locate())).parent
