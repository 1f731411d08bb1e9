"""The soak's clients: what they make of a server that refuses what is right."""

import asyncio
import json
import random

import httpx
import pytest

from tests.soak.checks import Outcome, Tally, judged
from tests.soak.load import Load

SENTENCE = {"error": {"message": "Not today."}}


@pytest.fixture
def load():
    return Load("http://server/v1", "m", 256, Tally())


def asked(load, kind, status, body=SENTENCE):
    """What a kind of request becomes at a server that says one thing."""
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=body))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url=load.url) as client:
            return await judged(getattr(load, kind)(client, random.Random(0)))

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["ask", "sample", "stream", "cancel"])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.WRONG),
        (429, Outcome.CRASHED),
        (204, Outcome.WRONG),
        (500, Outcome.CRASHED),
    ],
)
def test_a_valid_question_is_never_refused(load, kind, status, outcome):
    found, said = asked(load, kind, status)
    assert found == outcome
    assert str(status) in said
    assert "Not today." in said


def test_the_crowd_is_not_refused_either(load, monkeypatch):
    transport = httpx.MockTransport(lambda request: httpx.Response(400, json=SENTENCE))
    monkeypatch.setattr(
        load,
        "client",
        lambda: httpx.AsyncClient(transport=transport, base_url=load.url),
    )
    asyncio.run(load.crowd())
    assert set(load.tally.outcomes) == {Outcome.WRONG}
    assert load.tally.failures()


def test_nonsense_is_refused(load):
    assert asked(load, "nonsense", 400) == (Outcome.REFUSED, "")
    assert asked(load, "nonsense", 500)[0] == Outcome.CRASHED


def test_an_answer_is_compared(load):
    (question,) = load.questions = [load.questions[0]]
    body = {"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}
    load.wanted[question.name, False] = ("ab", (), "stop")
    assert asked(load, "ask", 200, body) == (Outcome.RIGHT, "")
    body = json.loads(json.dumps(body).replace("ab", "ac"))
    assert asked(load, "ask", 200, body)[0] == Outcome.WRONG
