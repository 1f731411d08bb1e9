"""Folders in the user's cache that no other user can write to."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

MODELS = "models"
"""Where ``max-mistral`` keeps what it prepared."""

UNUSED = 30 * 24 * 3600.0
"""Seconds after which what nobody has used is removed."""

LOCK = "lock"
"""The file in a folder that :func:`locked` locks."""

# Between two tries for a lock.
_PAUSE = 0.05


def cache_roots() -> Iterator[Path]:
    """Yields the folders to keep things in, best first; none need exist.

    ``$XDG_CACHE_HOME/max_mistral`` (``~/.cache``), then one in the temporary folder.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification has it, a relative path counts as none.
    if os.path.isabs(home):
        yield Path(home) / "max_mistral"
    else:
        with suppress(RuntimeError):  # no home
            yield Path.home() / ".cache" / "max_mistral"
    yield Path(tempfile.gettempdir()) / f"max_mistral-{os.geteuid()}"


def note_use(model: str | Path) -> None:
    """Notes that a model is used, by its path; one in ``models`` stays for a month."""
    folder = Path(model)
    if folder.parent in [root / MODELS for root in cache_roots()]:
        with suppress(OSError):  # the system's
            os.utime(folder)


def is_ours(path: Path) -> bool:
    """Whether only this user, or the system's, can have written to it."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    mine = found.st_uid in _trusted_owners() and not found.st_mode & 0o022
    return mine and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))


def _trusted_owners() -> set[int]:
    return {0, os.geteuid()}


def make_ours(folder: Path) -> None:
    """Makes a folder, or closes one of this user's to others.

    Raises:
        PermissionError: If it belongs to another user.
        OSError: If it cannot be made.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # One of an earlier release, or of a user whose umask lets a group write. What
    # others put there is theirs still, and not taken.
    if folder.lstat().st_uid == os.geteuid() and not folder.is_symlink():
        folder.chmod(0o700)
    if not is_ours(folder):
        raise PermissionError(
            f"{folder} belongs to another user, is a link, or others may write there; "
            "set XDG_CACHE_HOME to a folder of your own"
        )


def is_unused(path: Path, seconds: float) -> bool:
    """Whether a file or folder, or link, was not changed for so many seconds.

    Raises:
        OSError: If it is not there.
    """
    return time.time() - path.lstat().st_mtime >= seconds


def remove(paths: Iterable[Path], *, unused: float | None = None) -> None:
    """Removes files and folders, or those not changed for so many seconds."""
    for path in paths:
        with suppress(OSError):
            if unused is not None and not is_unused(path, unused):
                continue
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked(folder: Path, seconds: float | None = None) -> Iterator[None]:
    """Lets one process in at a time; a killed one leaves no lock.

    Args:
        folder: Which; it has the file ``LOCK`` from then on.
        seconds: How long to wait for another process; by default without end.

    Raises:
        TimeoutError: (an ``OSError``) if another one has it for longer.
        OSError: If the folder cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / LOCK, flags, 0o600)
    try:
        if seconds is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_within(descriptor, folder, seconds)
        yield
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, folder: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"another process has had {folder} locked for {seconds:g} seconds"
                ) from None
            time.sleep(_PAUSE)


def hash_of_code(sources: Path, folders: Iterable[str], packages: Iterable[str]) -> str:
    """Returns a hash of the code that makes what is kept.

    The version of this package would not tell one commit from the next, and only a
    package that is installed has one.

    Args:
        sources: Where this package's modules are.
        folders: Whose modules count, by their paths in it.
        packages: Others', of which the versions count.
    """
    digest = hashlib.sha256()
    for name in packages:
        digest.update(f"{name} {version(name)}\n".encode())
    for folder in folders:
        for source in sorted((sources / folder).glob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()
