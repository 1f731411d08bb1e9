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
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from max.driver import is_virtual_device_mode

from .. import switches
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
from .mapped import PARTIAL, mapped, read_ahead, write
from .memory import bytes_stored
from .unchanged import State, check_unchanged, state_of

logger = logging.getLogger("max.pipelines")

FOLDER = "packed"

# Below that, packing takes a second.
_LEAST_BYTES = 2**27
# How many times the weights' size must be free: a cache is not worth a full disk.
_ROOM = 4
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
        self._mapped: list[Bytes] = []

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
            return mapped(self._folder / name, shape) is not None
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
            found = mapped(path, shape)
        except OSError:  # not there, or no longer
            found = None
        if found is not None:
            self._check()
            self._mapped.append(found)
            return found
        made = make()
        self._check()
        try:
            write(path, made)
            self._written.append(path)
            found = mapped(path, shape)
        except OSError as error:
            logger.warning("Packed weights cannot be kept: %s", error)
            # A full disk has its room back. Another process may write to the folder.
            remove(self._written)
            self._folder = None
        return made if found is None else found

    def read_ahead(self) -> Thread | None:
        """Starts to read from the disk what an earlier start kept.

        Returns:
            The thread that does it; ``None`` where there is nothing to do.
        """
        return read_ahead(self._mapped)


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
    remove(folder.glob(f"{PARTIAL}*"), unused=_ABANDONED)
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
