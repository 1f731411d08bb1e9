"""Compiles Mojo sources to a library of operations, once for all starts."""

import functools
import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

from mojo.run import subprocess_run_mojo

from ..errors import UserError
from .cache import cached


def compiled(sources: Path, prefix: str = "", hint: str = "") -> Path:
    """Returns the ``.mojoc`` file of a folder's sources, compiled if needed.

    It is kept by what it is compiled from; see :mod:`.cache`.

    Args:
        sources: A folder of ``.mojo`` files.
        prefix: What its name in the cache begins with.
        hint: How to do without it, for the message.

    Raises:
        UserError: (a ``ValueError``) if MAX's toolchain cannot compile them.
    """
    make = functools.partial(_compile, sources, hint)
    return cached(prefix + _fingerprint(sources), make)


def _compile(sources: Path, hint: str, path: Path) -> None:
    command = ["precompile", str(sources), "-o", str(path)]
    try:
        subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"The kernels in {sources} do not compile:\n{error.stderr}\n{hint}"
        ) from error


def _fingerprint(sources: Path) -> str:
    digest = hashlib.sha256(version("max").encode())
    for source in sorted(sources.glob("*.mojo")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]
