"""The soak's checks can fail."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from tests.soak.checks import Outcome, Sample, Tally, growth, judged, refusal
from tests.soak.ends import COMPLAINT
from tests.soak.malformed import malformed
from tests.soak.questions import Answer, Streamed, questions, whole
from workbench.checkpoints import BASE

SENTENCE = json.dumps({"error": {"message": "The prompt is empty."}})


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        (400, SENTENCE, Outcome.REFUSED),
        (404, '{"detail": "Not Found"}', Outcome.REFUSED),
        (400, '{"error": {"message": ""}}', Outcome.WRONG),
        (400, "no JSON", Outcome.WRONG),
        (400, "[]", Outcome.WRONG),
        (200, "{}", Outcome.WRONG),
        (500, SENTENCE, Outcome.CRASHED),
    ],
)
def test_a_refusal_is_a_4xx_with_a_sentence(status, text, outcome):
    assert refusal(status, text, "x")[0] == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (httpx.ReadTimeout("slow"), Outcome.HUNG),
        (TimeoutError(), Outcome.HUNG),
        (httpx.ConnectError("no one"), Outcome.CLOSED),
        (ConnectionResetError(), Outcome.CLOSED),
        (
            httpx.RemoteProtocolError("Server disconnected without sending a response"),
            Outcome.CLOSED,
        ),
        (httpx.RemoteProtocolError("incomplete chunked read"), Outcome.LOST),
        (json.JSONDecodeError("no JSON", "", 0), Outcome.WRONG),
    ],
)
def test_what_a_request_raises_is_counted(error, outcome):
    async def request():
        raise error

    assert asyncio.run(judged(request()))[0] == outcome
    tally = Tally()
    asyncio.run(tally.count("ask", request()))
    assert tally.failures()
    assert not tally.failures(allowed=frozenset({outcome}))


FLAT = [Sample(1000 * i, 10**9 + i % 2, 88, 37, 26) for i in range(9)]


def test_what_is_flat_passes():
    assert growth(FLAT, bytes_a_request=300) == []


@pytest.mark.parametrize(
    ("name", "step"), [("memory", 400_000), ("files", 1), ("threads", 9), ("shared", 1)]
)
def test_what_grows_is_found(name, step):
    grown = [
        replace(sample, **{name: getattr(sample, name) + step * i})
        for i, sample in enumerate(FLAT)
    ]
    (found,) = growth(grown, bytes_a_request=300)
    assert found.startswith(f"{name} grew")


def test_a_short_run_does_not_judge_memory():
    short = [
        replace(s, requests=s.requests // 10, memory=2**30 + 2**20 * s.requests)
        for s in FLAT
    ]
    assert growth(short, bytes_a_request=300) == []


def test_an_answer_is_the_same_whole_and_streamed():
    body = {"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}
    streamed = Streamed()
    for text, finish in (("a", None), ("b", "stop")):
        chunk = {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}
        streamed.read(f"data: {json.dumps(chunk)}")
    assert not streamed.done
    streamed.read("data: [DONE]")
    assert streamed.done
    assert streamed.answer == whole(body) == Answer("ab", (), "stop")


def test_questions_and_malformed_requests_have_names_of_their_own():
    names = [question.name for question in questions(256)]
    assert len(set(names)) == len(names)
    wrong = [each.name for each in malformed("m", BASE["vocab_size"], 256)]
    assert len(set(wrong)) == len(wrong)


@pytest.mark.parametrize(
    ("line", "complains"),
    [
        ("resource_tracker.py:254: UserWarning: resource_tracker: There appear", True),
        ("01:00:09.410 ERROR: Exception in ASGI application", True),
        ("Traceback (most recent call last):", True),
        ("00:50:03.817 INFO: Executed TG batch with 2 reqs", False),
    ],
)
def test_complaints_in_a_log(line, complains):
    assert bool(COMPLAINT.findall(line)) == complains
