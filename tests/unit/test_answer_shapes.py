"""What the routes write, as OpenAI's own client and schemas read it."""

import json
from itertools import accumulate

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from tests.routes import EOS, Routes
from tests.tools import CALLS, TOOLS
from tests.vocabularies import write_real


def events(response):
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ("Yes.", {}),
        ("[THINK]Hm.[/THINK]Yes.", {}),
        (CALLS["v13"], {"tools": TOOLS}),
    ],
)
def test_a_stream_says_its_role_once(v13, answer, body):
    """OpenAI's client joins the texts of all deltas, the role's too."""
    state = ChatCompletionStreamState()
    for _ in range(2):  # a request's stream is its own
        chunks = events(v13.ask(answer, stream=True, **body))
        roles = [chunk["choices"][0]["delta"].get("role") for chunk in chunks]
        assert len(roles) > 1
        assert roles == ["assistant"] + [None] * (len(roles) - 1)
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    assert state.current_completion_snapshot.choices[0].message.role == "assistant"


def test_what_nobody_asked_for_has_no_scores(v13):
    v13.worker.answer = [*v13.ids("Yes."), EOS]
    whole = v13.complete("Hi").json()["choices"][0]
    chat = v13.answer("Yes.")
    chunks = events(v13.complete("Hi", stream=True))
    for choice in (whole, chat, *(chunk["choices"][0] for chunk in chunks)):
        assert choice.get("logprobs") is None
    # MAX drops these by a serializer, which ours replace.
    for choice in (chat, events(v13.ask("Yes.", stream=True))[0]["choices"][0]):
        assert not choice.keys() & {"token_ids", "prompt_token_ids"}
    assert v13.answer("Yes.", return_token_ids=True)["token_ids"][-1] == EOS


def test_a_stream_of_one_chunk_has_its_role(v13):
    (chunk,) = events(v13.ask("", stream=True))
    assert chunk["choices"][0]["delta"]["role"] == "assistant"


def test_scores_name_their_tokens(v13):
    v13.worker.at_a_time = 2
    v13.worker.answer = [*v13.ids("Yes, no."), EOS]
    whole = Completion.model_validate(v13.complete("Hi", logprobs=1).json())
    (choice,) = whole.choices
    *tokens, end = choice.logprobs.tokens
    assert ("".join(tokens), end) == (choice.text, "") == ("Yes, no.", "")
    # A token is a byte here.
    assert choice.logprobs.text_offset == list(range(len("Yes, no.") + 1))
    for _ in range(2):
        parts = events(v13.complete("Hi", logprobs=1, stream=True))
        scores = [part["choices"][0]["logprobs"] for part in parts]
        for name in ("tokens", "text_offset", "token_logprobs"):
            joined = [value for each in scores if each for value in each[name]]
            assert joined == getattr(choice.logprobs, name)


@pytest.mark.parametrize("kind", ["v1", "v3", "v7", "v3 tekken, images"])
def test_tokens_of_a_real_vocabulary(tmp_path, kind):
    """MAX decodes each alone, where sentencepiece leaves its leading space out."""
    server = Routes(write_real(tmp_path / "real", kind))
    server.worker.answer = [*server.ids("Hello world, so\n  it is."), EOS]
    choice = server.complete("Hi", logprobs=2).json()["choices"][0]
    scores = choice["logprobs"]
    *tokens, end = scores["tokens"]
    assert ("".join(tokens).lstrip(), end) == ("Hello world, so\n  it is.", "")
    assert all(tokens)
    assert {" world", " so", " it", " is"} <= {*tokens}
    assert scores["text_offset"] == [*accumulate(map(len, tokens), initial=0)]
    chat = server.answer("Hello world", logprobs=True, top_logprobs=2)
    said = [each["token"] for each in chat["logprobs"]["content"]]
    assert "".join(said).lstrip() == "Hello world"


def test_part_of_a_character_has_no_bytes(v13):
    """Which are not those of the text that stands for it."""
    asked = {"logprobs": True, "top_logprobs": 1}
    chunks = events(v13.ask("aé", stream=True, **asked))
    found = [chunk["choices"][0].get("logprobs") for chunk in chunks]
    streamed = [one for each in found if each for one in each["content"]]
    for scores in (v13.answer("aé", **asked)["logprobs"]["content"], streamed):
        parts = [(each["token"], each.get("bytes")) for each in scores]
        assert parts[:3] == [("a", [97]), ("\ufffd", None), ("\ufffd", None)]
        for each in scores[1:3]:
            assert [top.get("bytes") for top in each["top_logprobs"]] == [None]


def test_two_prompts_have_scores_of_their_own(v13):
    v13.worker.at_a_time = 1000
    v13.worker.answer = [*v13.ids("Yes."), EOS]
    choices = v13.complete(["Hi", "Ho"], logprobs=1).json()["choices"]
    assert [c["logprobs"]["text_offset"] for c in choices] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("body", "count"),
    [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 1}, 1)],
)
def test_a_chat_has_the_alternatives_that_were_asked_for(v13, body, count):
    body = {"logprobs": True} | body
    whole = v13.answer("Yes.", **body)["logprobs"]["content"]
    chunks = events(v13.ask("Yes.", stream=True, **body))
    parts = [chunk["choices"][0].get("logprobs") for chunk in chunks]
    streamed = [each for part in parts if part for each in part["content"]]
    for found in (whole, streamed):
        assert [each["logprob"] for each in found] == [0, -1, -2, -3, -4]
        assert [len(each["top_logprobs"]) for each in found] == [count] * 5


@pytest.mark.parametrize("count", [0, 1])
def test_a_completion_has_the_alternatives_that_were_asked_for(v13, count):
    v13.worker.at_a_time = 1
    v13.worker.answer = [*v13.ids("Yes."), EOS]
    whole = v13.complete("Hi", logprobs=count).json()["choices"][0]["logprobs"]
    parts = events(v13.complete("Hi", logprobs=count, stream=True))
    found = [part["choices"][0]["logprobs"] for part in parts]
    for name in ("token_logprobs", "top_logprobs"):
        joined = [value for each in found if each for value in each[name]]
        assert joined == whole[name]
    assert whole["token_logprobs"] == [0, -1, -2, -3, -4]
    assert [len(each) for each in whole["top_logprobs"]] == [count] * 5
    # The next request's are its own.
    assert v13.complete("Hi", logprobs=1).json()["choices"][0]["logprobs"][
        "top_logprobs"
    ][0]


def test_a_completion_keeps_its_thinking_as_text(v13):
    """It has no field for it."""
    v13.worker.at_a_time = 1
    v13.worker.answer = [*v13.ids("[THINK]Hm.[/THINK]Yes."), EOS]
    assert v13.complete("Hi").json()["choices"][0]["text"] == "Hm.Yes."
    parts = events(v13.complete("Hi", stream=True))
    assert "".join(part["choices"][0]["text"] for part in parts) == "Hm.Yes."
    whole = v13.complete("Hi", reasoning_split=True).json()["choices"][0]
    assert whole["text"] == "Yes."
