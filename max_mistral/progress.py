"""Progress on a terminal, for what takes a while."""

from __future__ import annotations

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
