"""How much memory this machine has left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def free_memory() -> int:
    """Returns the bytes that programs may still take; MAX's own count is its own."""
    available: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no such limit, or "max"
        # A container's; its page cache counts as used, so not the rest of it.
        available = min(available, int(CONTAINER_LIMIT.read_text()))
    return available
