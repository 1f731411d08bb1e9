"""Threads that start within ``threads_that_wait``."""

import os
import sys
import threading
from contextlib import ExitStack, contextmanager

import pytest

from max_mistral.workarounds.idle_threads import threads_that_wait

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has SCHED_IDLE")


@contextmanager
def another_thread():
    """Within it a thread runs; gives its number."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        yield thread.native_id
    finally:
        end.set()
        thread.join()


@linux
def test_only_threads_started_within_wait():
    with ExitStack() as running:
        before = running.enter_context(another_thread())
        with threads_that_wait():
            within = running.enter_context(another_thread())
        after = running.enter_context(another_thread())
        assert os.sched_getscheduler(within) == os.SCHED_IDLE
        for thread in (before, after, 0):
            assert os.sched_getscheduler(thread) == os.SCHED_OTHER


def test_a_machine_without_policies_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(os, "sched_getscheduler", raising=False)
    with threads_that_wait():
        pass


@linux
def test_a_refusal_is_no_error(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with threads_that_wait(), another_thread() as within:
        assert os.sched_getscheduler(within) == os.SCHED_OTHER
