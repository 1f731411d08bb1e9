"""Packed matrices as files: written whole, mapped, and read ahead of their use."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..disk import sync
from ..kernels.pieces import Bytes
from ..own_folders import is_ours

PARTIAL = "part-"

# Linux 5.14's, which Python's mmap module does not name.
_MADV_POPULATE_READ = 22
# Of one call, which may keep other threads from mapping memory.
_STEP = 2**25


def mapped(path: Path, shape: tuple[int, int]) -> Bytes | None:
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


def read_ahead(matrices: Sequence[Bytes]) -> threading.Thread | None:
    """Has mapped matrices read from the disk while the caller goes on.

    The first prompt would wait for the disk otherwise. Not by ``MADV_WILLNEED``, which
    reads small pages where :func:`mapped` asked for huge ones.

    Returns:
        The thread that does it; ``None`` where the system cannot.
    """
    if sys.platform != "linux" or not matrices:
        return None
    thread = threading.Thread(target=_read, args=(list(matrices),), daemon=True)
    thread.start()
    return thread


def _read(matrices: list[Bytes]) -> None:
    # Through ctypes: Python's own madvise would hold all other threads up.
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for matrix in matrices:
        for start in range(0, matrix.nbytes, _STEP):
            size = min(_STEP, matrix.nbytes - start)
            if madvise(matrix.ctypes.data + start, size, _MADV_POPULATE_READ):
                return  # An older Linux; or the disk fails, which their use will say.


def write(path: Path, packed: Bytes) -> None:
    """The file appears whole, and only once the disk has it.

    Raises:
        OSError: If it cannot be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(packed.data)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
