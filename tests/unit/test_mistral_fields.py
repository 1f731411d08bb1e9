"""What Mistral's own clients send and expect, over MAX's own routes."""

import functools
import json

import pytest
from max.pipelines.modeling.types import PipelineTask

from max_mistral.server.mistral_fields import as_openai
from tests.routes import EOS, Routes
from tests.tools import CALLS, TOOLS

PATHS = ("completions", "chat/completions")


@pytest.fixture(scope="module")
def plain(checkpoint):
    return Routes(checkpoint)


@pytest.fixture
def embedder(checkpoint):
    task = PipelineTask.EMBEDDINGS_GENERATION
    return functools.partial(Routes, checkpoint, task=task)


def post(routes, path, **body):
    routes.worker.answer = [70, 71, EOS]
    if path == "completions":
        return routes.complete(**{"prompt": [5]} | body)
    return routes.chat(**body)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_random_seed_is_a_seed(plain, path, stream):
    for seed in (0, 11):
        for body in ({}, {"seed": seed}):
            answer = post(plain, path, random_seed=seed, stream=stream, **body)
            assert answer.status_code == 200, answer.text
            assert plain.context.sampling_params.seed == seed


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"seed": 1, "random_seed": 2}, "seed is 1 and random_seed is 2; give one"),
        ({"random_seed": "x"}, "random_seed is 'x', not an integer"),
        ({"random_seed": True}, "random_seed is True, not an integer"),
        ({"safe_prompt": True}, "safe_prompt is True, but no safety prompt"),
        ({"safe_prompt": 0}, "safe_prompt is 0, but no safety prompt"),
        ({"prompt_mode": "reasoning"}, "prompt_mode is 'reasoning', but prompts have"),
    ],
)
def test_what_is_not_there_is_refused(plain, path, body, message):
    answer = post(plain, path, **body)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    assert plain.context is None


@pytest.mark.parametrize("path", PATHS)
def test_what_asks_for_nothing_passes(plain, path):
    nothing = {"random_seed": None, "safe_prompt": False, "prompt_mode": None}
    assert post(plain, path, **nothing).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_they_are_read_where_unknown_fields_pass(checkpoint, path):
    routes = Routes(checkpoint, allow_extra_request_fields=True)
    answer = post(routes, path, random_seed=7, colour="red", safe_prompt=False)
    assert answer.status_code == 200, answer.text
    assert routes.context.sampling_params.seed == 7
    assert post(routes, path, safe_prompt=True).status_code == 400


def test_embeddings_have_none_of_them(embedder):
    routes = embedder(allow_extra_request_fields=True)
    assert routes.post("embeddings", input=[5], random_seed=1).status_code == 200
    refused = embedder().post("embeddings", input=[5], random_seed=1)
    assert refused.status_code == 400
    assert "random_seed" in refused.text


def test_any_tool_is_a_required_one(server):
    server.ask(CALLS["v13"], tools=TOOLS, tool_choice="required")
    required = server.context.grammar
    server.ask(CALLS["v13"], tools=TOOLS, tool_choice="any")
    assert server.context.grammar == required
    assert server.context.grammar_state.grammar_enforced
    answer = server.chat(tool_choice="any")
    assert answer.status_code == 400
    assert "asks for a tool call, but the request has no tools" in answer.text


def test_the_clients_json_is_left_as_it_is():
    body = {"random_seed": 1, "tool_choice": "any", "safe_prompt": False}
    before = dict(body)
    assert as_openai(body) == {"seed": 1, "tool_choice": "required"}
    assert body == before


def chunks_of(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", PATHS)
def test_each_chunk_has_a_finish_reason(plain, path):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = chunks_of(post(plain, path, **options))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "stop"
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert len(reasons) > 1
    assert usage["choices"] == []


def test_a_chunk_has_nothing_else_that_is_null(server, version):
    chunks = chunks_of(server.ask(CALLS[version], tools=TOOLS, stream=True))
    for chunk in chunks:
        (choice,) = chunk["choices"]
        reason = choice.pop("finish_reason")
        assert "null" not in json.dumps(chunk)
    assert reason == "tool_calls"
