"""Where the compiled kernels are kept between starts.

What is compiled runs in this process, so it is taken only from a file that no
other user could have written, and only whole. Its path stays the same, for MAX
keeps compiled graphs by it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..disk import sync
from ..own_folders import cache_roots, is_ours, locked, make_ours

logger = logging.getLogger("max.pipelines")

# The compiler names the module after the file.
FILE = "max_mistral_kernels.mojoc"
_SUM, _PARTIAL = FILE + ".sha256", "tmp"
# No compiler runs for longer.
_ABANDONED = 6 * 3600.0


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Returns the file that ``make`` makes, from an earlier call if there is one.

    It is in ``$XDG_CACHE_HOME/max_mistral/<name>`` (``~/.cache``), or where that
    cannot be written or belongs to another user, in the temporary folder.

    Args:
        name: What tells this file from others, such as a hash of its sources.
        make: Writes the file to a path.

    Raises:
        OSError: If the temporary folder cannot be written either.
    """
    for root in cache_roots():
        try:
            return _cached_in(root, name, make)
        except OSError as error:
            logger.warning("The kernels cannot be kept in %s: %s", root, error)
    return _cached_in(_own_root(), name, make)


@functools.cache
def _own_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="max_mistral-"))
    # No later process could know of it.
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _cached_in(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    folder = root / name
    path = folder / FILE
    if is_ours(root) and is_ours(folder) and _is_whole(path):
        return path
    root.parent.mkdir(parents=True, exist_ok=True)
    for each in (root, folder):
        make_ours(each)
    with locked(folder):
        # Another process may have made it meanwhile.
        if not _is_whole(path):
            _sweep(root, folder)
            _make(path, make)
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    """Each file appears whole; the sum last, so that it vouches for the other."""
    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=path.parent))
    try:
        made, checked = folder / FILE, folder / _SUM
        make(made)
        checked.write_text(_digest(made))
        for each in (made, checked):
            each.chmod(0o600)
            sync(each)
        made.replace(path)
        checked.replace(path.with_name(_SUM))
        sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    beside = path.with_name(_SUM)
    if not (is_ours(path) and is_ours(beside)):
        return False
    return _digest(path) == beside.read_text(errors="replace").strip()


def _sweep(root: Path, folder: Path) -> None:
    """Removes what killed compilers left; ``folder`` is locked, so none runs there."""
    for path in root.glob(f"*/{_PARTIAL}*"):
        with suppress(FileNotFoundError):
            old = time.time() - path.lstat().st_mtime > _ABANDONED
            if path.parent == folder or old:
                shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
