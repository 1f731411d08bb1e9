"""How the operating system shares a CPU between MAX's threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def threads_that_wait() -> Iterator[None]:
    """Within it, threads start that do not take the CPU from running ones.

    The first graph that a process runs starts a thread of MAX's for its log of
    events, which wakes 5,000 times a second to look for some. Each time it would
    interrupt a thread that computes; as ``SCHED_BATCH``, which threads inherit,
    it waits for its turn. Linux only; elsewhere, or where the process already
    has another policy or may not change it, nothing changes.
    """
    try:
        changes = os.sched_getscheduler(0) == os.SCHED_OTHER
        if changes:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        changes = False
    try:
        yield
    finally:
        if changes:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
