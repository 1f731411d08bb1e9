"""A wrong body of many items: a sentence that names one, and not an error for each."""

import pytest
from max.serve.schemas.openai import (
    CreateChatCompletionRequest,
    CreateCompletionRequest,
)
from pydantic import ValidationError

from max_mistral.server.request_json import MOST_NAMES, RequestModel, first_words
from tests.chats import HI
from tests.routes import EOS, Routes

MANY = 20_000
WRONG = {f"x{i}": i for i in range(MOST_NAMES)} | {"last": 1}


@pytest.fixture(scope="module")
def plain(checkpoint):
    routes = Routes(checkpoint)
    routes.worker.answer = [70, 71, EOS]
    return routes


def wrong(fields):
    """Returns pydantic's error of a chat that is right but for some fields."""
    body = {"model": "m", "messages": [HI]} | fields
    with pytest.raises(ValidationError) as error:
        RequestModel(CreateChatCompletionRequest).model_validate(body)
    return error.value


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [HI] + [{}] * MANY},
        {"messages": [HI] + [5] * MANY},
        {"messages": [HI, HI | {"content": [{}] * MANY}]},
        {"messages": [HI, HI | {"tool_calls": [{"function": {}}] * MANY}]},
        {"stop_token_ids": ["a"] * MANY},
        {"stop": [5] * MANY},
    ],
)
def test_a_list_is_read_to_its_first_wrong_item(fields):
    assert wrong(fields).error_count() <= 3


@pytest.mark.parametrize("prompt", [["a", 5], [5, "a"], [[5], [None]], [None]])
def test_so_is_a_prompt(prompt):
    read = RequestModel(CreateCompletionRequest).model_validate
    with pytest.raises(ValidationError) as error:
        read({"model": "m", "prompt": prompt + prompt[-1:] * MANY})
    assert error.value.error_count() <= 5
    assert "prompt" in first_words(error.value)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        (WRONG, ""),
        ({"metadata": WRONG}, "metadata"),
        ({"logit_bias": WRONG}, "logit_bias"),
        ({"reasoning": WRONG}, "reasoning"),
        ({"stream_options": WRONG}, "stream_options"),
        ({"response_format": {"type": "text"} | WRONG}, "response_format"),
        ({"tool_choice": {"type": "function"} | WRONG}, "tool_choice"),
        ({"messages": [HI, HI | {"audio": WRONG}]}, "messages.1.audio"),
    ],
)
def test_an_object_has_a_limit(fields, where):
    error = wrong(fields)
    assert error.error_count() < 10
    words = first_words(error)
    assert f"fields; an object may have {MOST_NAMES}" in words
    assert words.startswith(where)


def test_what_is_right_is_read_as_max_reads_it():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "a"}] * 2
    body = {
        "model": "m",
        "messages": [HI, HI | {"content": parts}, HI | {"tool_calls": [call]}],
        "tools": [tool],
        "stop": ["a", "b"],
        "metadata": {"a": "b"},
    }
    read = RequestModel(CreateChatCompletionRequest).model_validate(body)
    whole = CreateChatCompletionRequest.model_validate(body)
    assert type(read) is CreateChatCompletionRequest
    assert list(read.tools) == list(whole.tools) == [tool]
    assert read.model_dump(exclude={"tools"}) == whole.model_dump(exclude={"tools"})


def test_over_the_routes(plain):
    refused = plain.complete([None] * MANY)
    assert refused.status_code == 400
    said = "prompt.list[str].0: Input should be a valid string"
    assert said in refused.json()["detail"]
    refused = plain.chat(messages=[HI] + [5] * MANY)
    assert refused.status_code == 400
    said = "messages.1: Input should be a valid dictionary."
    assert refused.json()["detail"] == said
    tool = {"type": "function", "function": {"name": "f"} | WRONG}
    for tools in ([{}], [{}] * MANY, [tool]):
        refused = plain.chat(messages=[HI], tools=tools)
        assert refused.status_code == 400
        assert "ool" in refused.json()["detail"]  # which MAX reads one by one
        assert len(refused.text) < 4000


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ([5, 6], [5, 6]),
        ([5.0, True, 6], [5, 1, 6]),
        (["5", 6], [5, 6]),
        ([[5, "6"]], [5, 6]),
    ],
)
def test_what_pydantic_takes_for_ids_is_taken(plain, prompt, ids):
    answer = plain.complete(prompt)
    assert answer.status_code == 200, answer.text
    assert plain.prompt_ids == ids


def test_errors_beyond_a_hundred_are_only_counted(plain):
    for count, words in ((60, "and 55 more like these."), (1000, "has 1000 errors")):
        refused = plain.chat(messages=[HI], **{f"x{i}": 1 for i in range(count)})
        assert refused.status_code == 400
        assert words in refused.json()["detail"]
        assert len(refused.text) < 4000
