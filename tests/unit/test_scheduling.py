"""Threads that start within ``threads_that_wait``."""

import os
import sys
import threading

import pytest

from max_mistral.scheduling import threads_that_wait

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has SCHED_BATCH")


def policy_of_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


@linux
def test_only_threads_started_within_wait():
    assert policy_of_a_new_thread() == os.SCHED_OTHER
    with threads_that_wait():
        assert policy_of_a_new_thread() == os.SCHED_BATCH
    assert policy_of_a_new_thread() == os.SCHED_OTHER


def test_a_machine_without_policies_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(os, "sched_getscheduler", raising=False)
    with threads_that_wait():
        pass


@linux
def test_a_refusal_is_no_error(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with threads_that_wait():
        assert policy_of_a_new_thread() == os.SCHED_OTHER
