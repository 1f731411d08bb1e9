"""``/v1/embeddings``: our handler behind MAX's router, before a model's worker."""

import asyncio
import base64
import json

import numpy as np
import pytest
from max.pipelines.modeling.types import PipelineTask

from max_mistral.server.embedding_route import AT_A_TIME
from tests.routes import Routes

TASK = PipelineTask.EMBEDDINGS_GENERATION


@pytest.fixture(scope="module")
def routes(checkpoint):
    return Routes(checkpoint, task=TASK)


def ids(routes, text):
    return routes.tokenizer.delegate.encode(text)


def embed(routes, given, **body):
    answer = routes.post("embeddings", input=given, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer):
    assert [item["index"] for item in answer["data"]] == list(
        range(len(answer["data"]))
    )
    assert {item["object"] for item in answer["data"]} == {"embedding"}
    return [item["embedding"] for item in answer["data"]]


@pytest.mark.parametrize(
    "given",
    ["Hello", ["Hello", "a", "Hello there"], [5, 6, 7], [[5, 6, 7], [8], [9] * 256]],
    ids=str,
)
def test_texts_and_ids(routes, given):
    alone = isinstance(given, str) or isinstance(given[0], int)
    texts = [given] if alone else given
    tokens = [ids(routes, t) if isinstance(t, str) else t for t in texts]
    answer = embed(routes, given)
    assert answer["object"] == "list"
    assert answer["model"] == "m"
    want = [[row[0], len(row), np.float32(0.1)] for row in tokens]
    assert vectors(answer) == want
    count = sum(map(len, tokens))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_encoding_format(routes, form):
    (got,) = vectors(embed(routes, [5, 6], encoding_format=form))
    if form == "base64":
        got = np.frombuffer(base64.b64decode(got), dtype="<f4")
    np.testing.assert_array_equal(np.float32(got), np.float32([5, 2, 0.1]))


def test_what_labels_a_request_is_ignored(routes):
    labelled, plain = embed(routes, [5], user="me"), embed(routes, [5])
    ids = [answer.pop("id") for answer in (labelled, plain)]
    assert labelled == plain
    assert ids[0] != ids[1]
    assert all(one.startswith("embd-") for one in ids)


@pytest.mark.parametrize(
    ("given", "body", "words"),
    [
        ("Hello", {"dimensions": 256}, "dimensions is 256"),
        ("Hello", {"encoding_format": "int8"}, "encoding_format"),
        ("Hello", {"colour": 1}, "colour"),
        ("Hello", {"tools": [1]}, "cannot be read"),
        ("Hello", {"model": "other"}, "model is 'other'"),
        ("", {}, "input is empty"),
        ([], {}, "input is empty"),
        (["a", ""], {}, "empty text"),
        ([[5], []], {}, "empty text"),
        ([[]], {}, "empty text"),
        (None, {}, "input"),
        ([5, "a"], {}, "input"),
        ([5, 320], {}, "token id 320"),
        ([[5], [-1]], {}, "token id -1"),
        ("a" * 257, {}, "256"),
        (["a", "a" * 257], {}, "256"),
        ([5] * 257, {}, "256"),
        (["a"] * 2049, {}, "2049 texts"),
        # As many as there may be, of which one is too long.
        (["a"] * 2047 + ["a" * 257], {}, "length of 256 tokens"),
    ],
)
def test_refused(routes, given, body, words):
    answer = routes.post("embeddings", input=given, **body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["detail"]
    # Not even the texts before it are embedded.
    assert routes.context is None


@pytest.mark.parametrize("text", ["{", "[]", "3", b"\xff", "[" * 100_000])
def test_json_that_cannot_be_read(routes, text):
    answer = routes.post_text("embeddings", text)
    assert answer.status_code == 400, answer.text


def test_other_routes_are_refused(routes):
    for answer in (routes.complete("Hello"), routes.chat()):
        assert answer.status_code == 400
        assert "use /v1/embeddings" in answer.json()["detail"]


def test_a_server_that_generates_refuses(checkpoint):
    answer = Routes(checkpoint).post("embeddings", input="Hello")
    assert answer.status_code == 400
    assert "--task embeddings_generation" in answer.json()["detail"]


def test_the_worker_has_some_of_the_texts_at_a_time(checkpoint):
    routes = Routes(checkpoint, task=TASK)
    given = [[5 + i % 7] * (1 + i % 5) for i in range(3 * AT_A_TIME)]
    want = [[row[0], len(row), np.float32(0.1)] for row in given]
    assert vectors(embed(routes, given)) == want
    assert routes.worker.given == len(given)
    assert routes.worker.most_streams == AT_A_TIME
    # Each answer was read to its end: the worker is told nothing.
    assert routes.worker.cancelled == []


def test_a_client_that_leaves(checkpoint):
    """Its other texts are not embedded."""
    routes = Routes(checkpoint, task=TASK)
    routes.worker.may_answer.clear()
    body = json.dumps({"model": "m", "input": ["a"] * (2 * AT_A_TIME)}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        while routes.worker.streams < AT_A_TIME:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
    scope |= {"query_string": b"", "client": ("x", 1), "server": ("x", 80)}
    asyncio.run(asyncio.wait_for(routes._app(scope, receive, send), timeout=60))
    assert routes.worker.given == AT_A_TIME
    assert routes.worker.streams == 0
    assert len(routes.worker.cancelled) == AT_A_TIME


@pytest.mark.parametrize("given", [[None] * 20_000, ["a"] * 3000 + [5]])
def test_a_wrong_body_is_not_sent_back(routes, given):
    answer = routes.post("embeddings", input=given)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("input.")
    assert len(answer.text) < 4000


def test_of_many_unknown_fields_some_are_named(routes):
    unknown = {f"field_{i}": "x" * 1000 for i in range(60)}
    answer = routes.post("embeddings", input="a", **unknown)
    assert answer.status_code == 400
    assert "field_0: " in answer.text
    assert "and 55 more like these" in answer.text
    assert len(answer.text) < 4000
