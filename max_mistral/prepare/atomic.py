"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..disk import sync
from ..errors import UserError

# How the name of a folder begins that is being filled.
PARTIAL = ".prepare-"


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes ``destination`` at the end.

    If anything fails, what was filled is removed, and nothing else. A process
    that is killed may leave a hidden folder beside ``destination``, but never
    half a ``destination``.

    Raises:
        UserError: (a ``ValueError``) if ``destination`` exists, or comes to
            exist meanwhile.
        OSError: If the folder cannot be written.
    """
    # A link to nowhere exists too.
    if os.path.lexists(destination):
        raise _exists(destination)
    made = _make_parents(destination.parent)
    try:
        # On the same file system, or the rename would be a copy.
        outer = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=destination.parent))
        try:
            # mkdtemp's own folder is closed to other users.
            folder = outer / "folder"
            folder.mkdir()
            yield folder
            _sync_all(folder)
            try:
                folder.rename(destination)
            except OSError as error:
                taken = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
                if error.errno in taken and os.path.lexists(destination):
                    raise _exists(destination) from error
                raise
            sync(destination.parent)
        finally:
            shutil.rmtree(outer, ignore_errors=True)
    except BaseException:
        for parent in made:
            with suppress(OSError):  # not empty: another process uses it
                parent.rmdir()
        raise


def _exists(destination: Path) -> UserError:
    return UserError(f"{destination} exists already. Remove it or name another folder.")


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and what it is in; returns what was made, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _sync_all(folder: Path) -> None:
    """Lets the files reach the disk before the name does."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)
