"""How the operating system shares a CPU between MAX's threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_THREADS = "/proc/self/task"


@contextmanager
def threads_that_wait() -> Iterator[None]:
    """Threads that start within it leave the CPU to those that compute.

    The first graph that a process runs starts a thread of MAX's for its log of
    events, which wakes 5,000 times a second to look for some. Each time it would
    interrupt a thread that computes; as ``SCHED_IDLE`` it takes what the others
    leave. Linux only; elsewhere, or where the process already has another
    policy or may not change it, nothing changes.
    """
    try:
        changes = os.sched_getscheduler(0) == os.SCHED_OTHER
        before = set(os.listdir(_THREADS))
        if changes:
            # Threads that this one starts inherit it, which is how they are found
            # below. As SCHED_IDLE this one would itself have to wait.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        changes = False
    try:
        yield
    finally:
        if changes:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            for thread in set(os.listdir(_THREADS)) - before:
                _leave_the_cpu(int(thread))


def _leave_the_cpu(thread: int) -> None:
    try:
        if os.sched_getscheduler(thread) == os.SCHED_BATCH:
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # It has ended.
        pass
