"""Stop strings: the search in random pieces, and over MAX's own routes."""

import asyncio
import itertools
import json
import random
from types import SimpleNamespace

import pytest
from max.pipelines.context import GenerationStatus, TextGenerationOutput
from max.serve.scheduler_result import SchedulerResult
from max.serve.worker_interface.zmq_interface import ZmqModelWorkerProxy

from max_mistral.server.request_limits import LONGEST_STOPS, MOST_STOPS
from max_mistral.server.stop_strings import StopSearch, TokenByToken
from tests.routes import EOS, joined
from tests.tools import CALLS, TOOLS, TWO, calls_of


def pieces_of(rng, text):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(8)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def expected(text, stops):
    """What stands before the stop string that is complete first, and which it is."""
    for end in range(len(text) + 1):
        found = [(text[:end].find(s), s) for s in stops if s in text[:end]]
        if found:
            at, stop = min(found)
            return text[:at], stop
    return text, None


def test_random_texts_in_random_pieces():
    rng = random.Random(11)
    found = 0
    for _ in range(20_000):
        letters = "abc"[: rng.randrange(1, 4)] + "☺"
        text = "".join(rng.choices(letters, k=rng.randrange(30)))
        lengths = [rng.randrange(1, 7) for _ in range(rng.randrange(1, 5))]
        stops = ["".join(rng.choices(letters, k=length)) for length in lengths]
        search, got, stop = StopSearch(stops), "", None
        for piece in pieces_of(rng, text):
            more, stop = search.add(piece)
            got += more
            if stop is not None:
                break
            held = search.held
            assert any(s.startswith(held) and s != held for s in stops)
            assert not any(s in got + held for s in stops)
        assert (got + search.held, stop) == expected(text, stops), (text, stops)
        found += stop is not None
    assert 5_000 < found < 15_000


def test_nothing_is_held_that_begins_no_stop_string():
    search = StopSearch(["ab", "xyz"])
    assert [search.add(piece) for piece in ("1", "a", "a", "x", "y", "y")] == [
        ("1", None),
        *(("", None), ("a", None)),
        *(("a", None), ("", None), ("xyy", None)),
    ]


# Over MAX's routes, from a model that would go on.

ANSWERS = [
    ("Hello STOP there", ["STOP"], "Hello "),
    ("Hello STOP", ["STOP"], "Hello "),
    ("STOP", ["STOP"], ""),
    ("a STO b STOSTOP c", ["STOP"], "a STO b STO"),
    ("x abcd", ["abcd", "bc"], "x a"),
    ("x abc", ["b", "abc"], "x a"),
    ("x abc", ["bc", "abc"], "x "),
    ("Grüße ☺ ß!", ["☺ ß"], "Grüße "),
    ("1\n2\n\n3", ["\n\n", "3"], "1\n2"),
    ("x" * 50 + "y" + "z", ["x" * 20 + "y"], "x" * 30),
]


@pytest.fixture
def unfinished(servers):
    """A server whose model has not come to an end when the answer has."""
    server = servers["v3"]
    server.worker.status = GenerationStatus.ACTIVE
    server.worker.cancelled.clear()
    yield server
    server.worker.status = GenerationStatus.END_OF_SEQUENCE
    assert server.worker.streams == 0


def ask(server, path, answer, at_a_time=1, **body):
    server.worker.answer = [*server.ids(answer), EOS]
    server.worker.at_a_time = at_a_time
    post = server.chat if path == "chat" else lambda **b: server.complete([5], **b)
    response = post(**body)
    assert response.status_code == 200, response.text
    return response


def events(response):
    lines = [e.removeprefix("data:") for e in response.text.splitlines() if e]
    return [json.loads(line) for line in lines if "[DONE]" not in line]


def both_ways(server, path, answer, **body):
    """The text and reason of an answer, whole and streamed, which must be alike."""
    (choice,) = ask(server, path, answer, **body).json()["choices"]
    stream = ask(server, path, answer, stream=True, **body)
    if path == "chat":
        said, whole = joined(stream.text), choice["message"]["content"]
        streamed = (said["message"]["content"], said["finish_reason"])
    else:
        parts = [choice for event in events(stream) for choice in event["choices"]]
        assert all(part["finish_reason"] is None for part in parts[:-1])
        text = "".join(part["text"] for part in parts)
        streamed, whole = (text, parts[-1]["finish_reason"]), choice["text"]
    assert streamed == (whole, choice["finish_reason"])
    return streamed


@pytest.mark.parametrize("path", ["chat", "completions"])
@pytest.mark.parametrize(("answer", "stops", "text"), ANSWERS)
def test_an_answer_ends_before_its_stop_string(unfinished, path, answer, stops, text):
    for at_a_time in (1, 2, 3, 7, 1000):
        found = both_ways(
            *(unfinished, path, answer + ", and on and on"),
            at_a_time=at_a_time,
            stop=stops,
        )
        assert found == (text, "stop")
        assert unfinished.worker.streams == 0
        assert unfinished.context.request_id in unfinished.worker.cancelled


@pytest.mark.parametrize("path", ["chat", "completions"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (GenerationStatus.END_OF_SEQUENCE, "stop"),
        (GenerationStatus.MAXIMUM_LENGTH, "length"),
    ],
)
def test_what_was_held_back_comes_out(unfinished, path, status, reason):
    unfinished.worker.status = status
    for answer in ("Hello STO", "STO", "Hello", ""):
        for at_a_time in (1, 2, 1000):
            found = both_ways(
                unfinished, path, answer, at_a_time=at_a_time, stop="STOP"
            )
            assert found == (answer, reason)
    assert not unfinished.worker.cancelled


@pytest.mark.parametrize("at_a_time", [1, 2, 5, 1000])
def test_usage_ids_and_scores_end_with_the_stop_string(unfinished, at_a_time):
    """A token is a byte here: 4 of "Hi, ", 4 of "STOP"."""
    body = {"stop": ["STOP"], "return_token_ids": True, "at_a_time": at_a_time}
    want = unfinished.ids("Hi, STOP")
    scores = [-float(i) for i in range(8)]
    chat = body | {"logprobs": True}
    answer = ask(unfinished, "chat", "Hi, STOP it", **chat).json()
    (choice,) = answer["choices"]
    assert choice["token_ids"] == want
    assert answer["usage"]["completion_tokens"] == len(want)
    content = choice["logprobs"]["content"]
    assert [c["logprob"] for c in content] == scores
    assert "".join(c["token"] for c in content) == "Hi, STOP"
    options = {"include_usage": True}
    stream = ask(
        *(unfinished, "completions", "Hi, STOP it"),
        **body | {"logprobs": 1, "stream": True, "stream_options": options},
    )
    *parts, usage = events(stream)
    assert usage["usage"]["completion_tokens"] == len(want)
    choices = [part["choices"][0] for part in parts]
    assert [i for c in choices for i in c["token_ids"] or []] == want
    found = [c["logprobs"] or {"token_logprobs": []} for c in choices]
    assert [s for each in found for s in each["token_logprobs"]] == scores


def test_a_stop_string_in_a_call_and_in_json(servers):
    v13 = servers["v13"]
    for found in (v13.answer, v13.streamed):
        for at_a_time in (1, 3, 1000):
            body = {"tools": TOOLS, "at_a_time": at_a_time}
            choice = found(CALLS["v13"] + "\n\nNo", stop=["\n\n"], **body)
            assert calls_of(choice) == TWO
            assert choice["finish_reason"] == "tool_calls"
            choice = found("Well. " + CALLS["v13"], stop=["Well. [TOOL"], **body)
            assert choice["message"]["content"] == ""
            assert (calls_of(choice), choice["finish_reason"]) == ([], "stop")
            choice = found(CALLS["v13"], stop=["Åre"], **body)
            assert choice["finish_reason"] == "stop"
            form = {"type": "json_object"}
            choice = found('{"a": "bc"}', stop=["c"], response_format=form)
            assert choice["message"]["content"] == '{"a": "b'


def test_reasoning_is_not_searched(servers):
    v13 = servers["v13"]
    for found in (v13.answer, v13.streamed):
        for at_a_time in (1, 3, 1000):
            answer = "[THINK]a STOP b[/THINK]Yes. STOP No."
            choice = found(answer, at_a_time=at_a_time, stop="STOP")
            assert choice["message"]["reasoning"] == "a STOP b"
            assert choice["message"]["content"] == "Yes. "
            # Nor by the worker, which knows a stop string by its tokens.
            assert not v13.context.eos_tracker.eos_sequences
    servers["v3"].answer("Yes. STOP No.", stop="STOP")
    assert servers["v3"].context.eos_tracker.eos_sequences


def test_the_longest_stop_strings_are_taken(unfinished):
    stops = ["a"] * (MOST_STOPS - 1) + ["b" * (LONGEST_STOPS - MOST_STOPS + 1)]
    assert both_ways(unfinished, "chat", "bbba", stop=stops) == ("bbb", "stop")


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_a_stop_string_of_an_answer_that_ignores_its_end(unfinished, path):
    found = both_ways(unfinished, path, "abc", stop="b", ignore_eos=True)
    assert found == ("a", "stop")


def test_several_prompts_end_each_on_its_own(unfinished):
    unfinished.worker.answer = unfinished.ids("Hi. STOP.")
    answer = unfinished.complete(["a", "b", "c"], stop="STOP").json()
    assert [choice["text"] for choice in answer["choices"]] == ["Hi. "] * 3


# What MAX keeps of a request in the server's process.


class Queue:
    """What stands for a queue to the worker's process."""

    def __init__(self):
        self.sent = []

    async def writable(self, **_):
        return True

    async def put(self, item):
        self.sent.append(item)

    put_nowait = lambda self, item: self.sent.append(item)  # noqa: E731


def test_an_answer_left_early_leaves_nothing_behind():
    async def left_early():
        cancelled = Queue()
        proxy = ZmqModelWorkerProxy(Queue(), Queue(), cancelled)
        worker = TokenByToken(proxy)
        stream = await worker.stream("id", SimpleNamespace())
        for tokens in ([1, 2, 3], [4], [5, 6]):
            output = TextGenerationOutput(
                request_id="id", tokens=tokens, final_status=GenerationStatus.ACTIVE
            )
            result = SchedulerResult(is_done=False, result=output)
            await proxy.pending_out_queues["id"].put((0.0, result))
        got = [(await anext(stream))[0][0].tokens for _ in range(5)]
        assert got == [[1], [2], [3], [4], [5]]
        await worker.aclose()
        assert cancelled.sent == [["id"]]
        assert proxy.pending_out_queues == {}

    asyncio.run(left_early())


def test_an_end_that_comes_without_a_token_comes_through():
    """Without it the answer would have no reason for its end."""
    ends = [GenerationStatus.ACTIVE, GenerationStatus.MAXIMUM_LENGTH]

    async def stream(*_):
        async def answer():
            for tokens, status in zip(([1], []), ends, strict=True):
                output = TextGenerationOutput(
                    request_id="id", tokens=tokens, final_status=status
                )
                yield [output], 0

        return answer()

    async def read():
        answer = await TokenByToken(SimpleNamespace(stream=stream)).stream("id", None)
        return [outputs[0].final_status async for outputs, _ in answer]

    assert asyncio.run(read()) == ends
