"""What is printed on a terminal: progress of what takes a while, and lines."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _Bar(tqdm):
    """A bar of one process.

    tqdm's own lock is a semaphore of the system's, which a model worker that
    SIGTERM ends would leave behind.
    """

    _lock = threading.RLock()


def progress(items: Collection[T], what: str, unit: str) -> Iterator[T]:
    """Yields the items, with a bar where someone sees it move.

    Args:
        items: What is gone through.
        what: Stands before the bar: ``"Loading weights"``.
        unit: What the items are: ``"tensors"``.
    """
    yield from _Bar(items, desc=what, unit=f" {unit}", disable=None)


def print_line(line: str) -> None:
    """Prints a line with a path, which need be no text, as the bytes that it is."""
    try:
        print(line, flush=True)
    except UnicodeEncodeError:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(f"{line}\n"))
        sys.stdout.buffer.flush()
