"""Compiles Mojo sources to a library of operations, once for all starts."""

import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mojo.run import subprocess_run_mojo

from ..errors import UserError
from .cache import cached


def compiled(
    sources: Path, prefix: str = "", hint: str = "", without: Sequence[str] = ()
) -> Path:
    """Returns the ``.mojoc`` file of a folder's sources, compiled if needed.

    It is kept by what it is compiled from; see :mod:`.cache`.

    Args:
        sources: A folder of ``.mojo`` files.
        prefix: What its name in the cache begins with.
        hint: How to do without it, for the message.
        without: Modules to leave out, which only ``__init__.mojo`` imports.

    Raises:
        UserError: (a ``ValueError``) if MAX's toolchain cannot compile them.
    """
    if not without:
        make = functools.partial(_compile, sources, hint)
        return cached(prefix + _fingerprint(sources), make)
    with tempfile.TemporaryDirectory() as folder:
        # A package has its folder's name.
        rest = Path(folder, sources.name)
        rest.mkdir()
        for source in sources.glob("*.mojo"):
            if source.stem not in without:
                (rest / source.name).write_text(_text(source, without))
        return compiled(rest, prefix, hint)


def _text(source: Path, without: Sequence[str]) -> str:
    """Returns a source but for the lines that import modules that are left out."""
    lines = source.read_text().splitlines(keepends=True)
    imports = tuple(f"from .{name} import " for name in without)
    return "".join(line for line in lines if not line.startswith(imports))


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
