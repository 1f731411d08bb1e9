"""A short soak: a server with too few KV pages under load and under fault.

``make soak`` is the long one.
"""

import asyncio

import pytest

from tests.soak.load import CLIENTS
from tests.soak.run import Report, kill, soak


@pytest.fixture
def report():
    return Report()


def test_a_load_with_faults_and_then_sigterm(tmp_path, report):
    asyncio.run(soak(tmp_path / "m", "full", 180, 5, report))
    assert not report.wrong
    assert report.outcomes.total() == 180 + CLIENTS
    assert report.outcomes["right"] > 90
    assert report.outcomes["refused"] > 9
    assert report.faults > 30
    assert report.preemptions > 0


def test_a_worker_that_is_killed(tmp_path, report):
    asyncio.run(kill(tmp_path / "m", "full", "worker", report))
    assert not report.wrong
