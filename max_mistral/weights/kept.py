"""Packed matrices, kept on disk for the next start, which maps them.

To pack takes seconds a gigabyte; a mapped file takes none, and several processes
share its memory. It is kept by what it was made of, so a changed checkpoint or
another version of this package makes a new one, and the old one goes. Like compiled
kernels, it is taken only from files that no other user could have written.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from max.driver import is_virtual_device_mode

from .. import switches
from ..disk import sync
from ..errors import UserError
from ..kernels.pieces import Bytes
from ..own_folders import (
    LOCK,
    UNUSED,
    cache_roots,
    hash_of_code,
    is_ours,
    locked,
    make_ours,
    remove,
)
from ..switches import is_on
from .memory import bytes_stored

logger = logging.getLogger("max.pipelines")

State = tuple[tuple[int, int, int, int], ...]

FOLDER = "packed"

# Below that, packing takes a second.
_LEAST_BYTES = 2**27
# How many times the weights' size must be free: a cache is not worth a full disk.
_ROOM = 4
_PARTIAL = "part-"
# No matrix is written for as long.
_ABANDONED = 3600.0
# Whoever has the lock makes a folder, and removes old ones.
_LONGEST_WAIT = 10.0


class KeptMatrices:
    """The packed matrices of one checkpoint.

    Args:
        folder: Where they are kept; ``None`` keeps none.
        check: Raises if the checkpoint is no longer what the folder is for.
    """

    def __init__(
        self, folder: Path | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._check = check
        self._written: list[Path] = []

    @classmethod
    def of(
        cls, paths: Sequence[Path], how: str = "", state: State | None = None
    ) -> KeptMatrices:
        """Returns those of a checkpoint, if it is one that they are kept for.

        Args:
            paths: Its files.
            how: What else it depends on what a matrix holds.
            state: What :func:`state_of` returned before any of them was read; by
                default what it returns now.

        Raises:
            UserError: (a ``ValueError``) if ``MAX_MISTRAL_KEEP_PACKED`` is neither
                ``on``, the default, nor ``off``.
        """
        # max warm-cache may have zeros for a checkpoint that is not there.
        if not is_on(switches.KEEP_PACKED) or is_virtual_device_mode():
            return cls()
        try:
            state = state or state_of(paths)
            folder = _folder_for(paths, state, how)
            return cls(folder, functools.partial(check_unchanged, paths, state))
        except OSError as error:
            logger.warning("Packed weights cannot be kept: %s", error)
            return cls()

    def has(self, name: str, shape: tuple[int, int]) -> bool:
        """Whether :meth:`matrix` would map one."""
        if self._folder is None:
            return False
        try:
            return _mapped(self._folder / name, shape) is not None
        except OSError:  # not there
            return False

    def matrix(
        self, name: str, shape: tuple[int, int], make: Callable[[], Bytes]
    ) -> Bytes:
        """Returns a packed matrix: mapped, once it was made and kept.

        Args:
            name: What tells it from the checkpoint's others, also if they were
                packed in another way; a file's name.
            shape: Of the uint8 array that ``make`` returns.
            make: Packs it.

        Raises:
            UserError: (a ``ValueError``) if a file of the checkpoint has changed.
        """
        if self._folder is None:
            return make()
        path = self._folder / name
        try:
            found = _mapped(path, shape)
        except OSError:  # not there, or no longer
            found = None
        if found is not None:
            self._check()
            return found
        made = make()
        self._check()
        try:
            _write(path, made)
            self._written.append(path)
            found = _mapped(path, shape)
        except OSError as error:
            logger.warning("Packed weights cannot be kept: %s", error)
            # A full disk has its room back. Another process may write to the folder.
            remove(self._written)
            self._folder = None
        return made if found is None else found


def state_of(paths: Sequence[Path]) -> State:
    """Returns what changes when a file is written to or another takes its place.

    A size and a time of modification are not enough: some tools set the latter.
    Of a file that is not there it is zeros.
    """
    found = []
    for path in paths:
        try:
            file = path.stat()
        except OSError:
            found.append((0, 0, 0, 0))
            continue
        made = file.st_size, file.st_ino, file.st_mtime_ns
        found.append((*made, file.st_ctime_ns))
    return tuple(found)


def check_unchanged(paths: Sequence[Path], state: State) -> None:
    """Raises a ``UserError`` if a file of a checkpoint is no longer what it was.

    Args:
        paths: Its files.
        state: What :func:`state_of` returned before any of them was read.
    """
    # Not by the last number: it changes with a file's mode, and its links. Nor by the
    # second: some file systems over a network give a file another one now and then.
    if [file[:3:2] for file in state_of(paths)] == [file[:3:2] for file in state]:
        return
    names = ", ".join(map(str, paths))
    raise UserError(
        f"{names} changed while the weights were loaded. Start again when the files "
        "are whole."
    )


def _folder_for(paths: Sequence[Path], state: State, how: str) -> Path | None:
    """Returns the folder of a checkpoint as it is now, which is there and ours.

    ``None`` if the checkpoint is too small for one, or the disk too full.
    """
    size = sum(bytes_of for bytes_of, *_ in state)
    if size < _LEAST_BYTES:
        return None
    root = next(cache_roots())
    root.parent.mkdir(parents=True, exist_ok=True)
    place = hashlib.sha256(b"\n".join(os.fsencode(p.absolute()) for p in paths))
    what = hashlib.sha256(f"{_code()}\n{how}\n{state}".encode())
    checkpoint = root / FOLDER / place.hexdigest()[:16]
    folder = checkpoint / what.hexdigest()[:16]
    for each in (root, root / FOLDER, checkpoint):
        make_ours(each)
    os.utime(checkpoint)
    if not _is_begun(folder):
        # Or a start at the same time would sweep away what this one makes.
        with locked(checkpoint, _LONGEST_WAIT):
            if not is_ours(folder):
                _sweep(checkpoint)
            if not _is_begun(folder) and not _has_room(root, paths):
                return None
            make_ours(folder)
        logger.info(
            "Packed weights are kept in %s for the next start; %s=off leaves that out",
            folder,
            switches.KEEP_PACKED,
        )
    remove(folder.glob(f"{_PARTIAL}*"), unused=_ABANDONED)
    return folder


def _has_room(root: Path, paths: Sequence[Path]) -> bool:
    size = sum(bytes_stored(path, packed=True) for path in paths)
    if shutil.disk_usage(root).free >= _ROOM * size:
        return True
    logger.info("Packed weights are not kept: %s has too little room", root)
    return False


def _is_begun(folder: Path) -> bool:
    """Whether something is kept there, for which there was room, or being written."""
    return is_ours(folder) and any(folder.iterdir())


@functools.cache
def _code() -> str:
    """Returns a hash of the code that says what a packed matrix holds."""
    folders = ("formats", "kernels", "weights")
    # The gguf package converts some encodings.
    return hash_of_code(Path(__file__).parents[1], folders, ["gguf"])


def _sweep(checkpoint: Path) -> None:
    """Removes what an earlier state left, and checkpoints not used for a month."""
    remove(path for path in checkpoint.iterdir() if path.name != LOCK)
    remove(checkpoint.parent.iterdir(), unused=UNUSED)


def _mapped(path: Path, shape: tuple[int, int]) -> Bytes | None:
    """Returns a file's bytes, which are read when they are used; ``None`` if not ours.

    Raises:
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = shape[0] * shape[1]
        if not is_ours(path) or os.fstat(descriptor).st_size != size:
            return None
        # MAX takes no array that cannot be written to.
        pages = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
    # Decoding reads every page each token: in pages of 4 KiB it is a tenth slower.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # This Linux has none.
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8).reshape(shape)


def _write(path: Path, packed: Bytes) -> None:
    """The file appears whole, and only once the disk has it."""
    descriptor, name = tempfile.mkstemp(prefix=_PARTIAL, dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(packed.data)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
