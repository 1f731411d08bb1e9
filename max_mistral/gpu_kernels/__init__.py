"""Products on MAX's multistage GEMM, for GPUs on which its other matmul is wrong."""

import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

from mojo.run import subprocess_run_mojo

from ..kernels.cache import cached

_SOURCES = Path(__file__).parent


def library() -> Path:
    """Returns the compiled kernels, a ``.mojoc`` file; compiles them if needed.

    In a graph that is traced with it, and its subgraphs, they take the place of
    MAX's own matmul.

    Raises:
        RuntimeError: If MAX's toolchain cannot compile them.
    """
    return cached(f"gpu-{_fingerprint()}", _compile)


def _compile(path: Path) -> None:
    command = ["precompile", str(_SOURCES), "-o", str(path)]
    try:
        subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"The kernels in {_SOURCES} do not compile:\n{error.stderr}"
        ) from error


def _fingerprint() -> str:
    digest = hashlib.sha256(version("max").encode())
    for source in sorted(_SOURCES.glob("*.mojo")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]
