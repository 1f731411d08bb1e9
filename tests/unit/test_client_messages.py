"""What a client sends in a chat's messages: read as Mistral's own, or refused."""

import pytest
from max.pipelines.context.exceptions import InputError
from max.serve import _tool_call_validation

from max_mistral.chat.client_messages import (
    IGNORED,
    LONGEST_ID,
    MOST_CALLS,
    read_messages,
)
from max_mistral.chat.tool_choice import LONGEST_NAMES, MOST_TOOLS
from tests.chats import ADD, HELLO, HI, SUM, SUNNY, WEATHER, call, called
from tests.tools import CALLS, TOOLS

THOUGHT = {"type": "text", "text": "hmm"}
ANSWER = {"type": "text", "text": "Yes."}


def thinking(value, **more):
    return {"type": "thinking", "thinking": value} | more


def says(*parts, **more):
    return {"role": "assistant", "content": list(parts)} | more


def media(kind, **more):
    return {"type": kind, kind: more}


def prompt_after(server, message):
    server.answer("2.", messages=[HI, message, HI])
    return server.prompt_ids


@pytest.mark.parametrize("value", ["hmm", [THOUGHT], []])
def test_thinking_in_content_is_reasoning_content(v13, value):
    """For a chat template; mistral-common takes the parts as they are."""
    text = value if isinstance(value, str) else "".join(p["text"] for p in value)
    want = prompt_after(v13, says(ANSWER, reasoning_content=text))
    for more in ({}, {"closed": True}, {"closed": None}):
        assert prompt_after(v13, says(thinking(value, **more), ANSWER)) == want
    if text:
        assert prompt_after(v13, says(ANSWER)) != want


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (says(ANSWER, thinking("hmm")), "has a part of type 'thinking'"),
        (says(thinking("a"), thinking("b"), ANSWER), "has a part of type 'thinking'"),
        (says(thinking("hmm", closed=False), ANSWER), "takes once, closed, and first"),
        (says(thinking("hmm", closed=0), ANSWER), "thinking that is not a text"),
        (says(thinking(7), ANSWER), "thinking that is not a text"),
        (says(thinking([7]), ANSWER), "thinking that is not a text"),
        (says(thinking([{"type": "text"}]), ANSWER), "thinking that is not a text"),
        (says(thinking("a"), ANSWER, reasoning_content="b"), "its thinking twice"),
        (says(thinking("a"), ANSWER, reasoning="b"), "its thinking twice"),
        (says({"type": "refusal", "refusal": "No."}), "a part of type 'refusal'"),
        (says({"type": "file", "file": {}}), "a part of type 'file'"),
        (says(ANSWER, media("image_url", url="https://x")), "read no images here"),
        (says(ANSWER, media("video_url", url="https://x")), "read no videos here"),
        (says(media("input_audio", data="", format="wav")), "read no audio here"),
        # MAX looks for what is not there, and says "Invalid JSON."
        (says({"type": "image_url"}), "[1] has a part of type 'image_url', but models"),
        (says(ANSWER, prefix=True), "continue_final_message"),
        (says(ANSWER, reasoning={"a": 1}), "messages[1].reasoning must be a string"),
        (says(ANSWER, refusal="No."), "messages[1].refusal is not supported"),
        (says(ANSWER, function_call={"name": "f", "arguments": ""}), ".function_call"),
    ],
)
def test_what_would_be_dropped_is_refused(v13, message, reason):
    response = v13.ask(messages=[HI, message, HI])
    assert response.status_code == 400, response.text
    assert reason in response.json()["detail"]


def test_an_unknown_field_of_a_message(v13):
    said = [HI, HELLO | {"toolcalls": []}]
    response = v13.ask(messages=[*said, HI])
    assert response.status_code == 400, response.text
    reason = "messages[1] has a field 'toolcalls' that is not known"
    assert reason in response.json()["detail"]
    v13.answer("2.", messages=[HI | {"toolcalls": None}])
    read_messages(said, said, keeps_parts=True, takes_unknown=True)
    with pytest.raises(InputError, match="'toolcalls'"):
        read_messages(said, said, keeps_parts=True)


def test_labels_of_a_message_are_ignored(v13):
    """An answer of OpenAI's client, or of another server, can be sent back."""
    want = prompt_after(v13, HELLO)
    # As dumped by OpenAI's client: what is not there is null.
    dumped = dict.fromkeys(["refusal", "audio", "function_call", "tool_calls"])
    for field in IGNORED:
        value = "Ann" if field in ("name", "id") else [{"type": "x"}]
        assert prompt_after(v13, HELLO | dumped | {field: value}) == want, field


@pytest.mark.parametrize("role", ["user", "system"])
def test_only_the_assistant_thinks(v13, role):
    message = {"role": role, "content": [thinking("hmm")]}
    response = v13.ask(messages=[message, HI])
    assert response.status_code == 400
    assert "has a part of type 'thinking'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("[" * 100_000, "too many levels"),
        ("1" * 5_000, "Exceeds the limit"),
        ("{'a': 1}", "cannot be read as JSON"),
    ],
    ids=["deep", "long", "Python"],
)
def test_arguments_that_cannot_be_read(v13, arguments, reason):
    message = called(call("add", arguments, "abcdefgh1"))
    response = v13.ask(messages=[HI, message], tools=TOOLS)
    assert response.status_code == 400, response.text
    assert reason in response.json()["detail"]


def test_blank_arguments_are_none(v13):
    prompts = []
    for arguments in ("", " ", "{}"):
        v13.answer("2.", messages=[HI, called(call("add", arguments, "abcdefgh1"))])
        prompts.append(v13.prompt)
    assert prompts[0] == prompts[1] == prompts[2]


def test_more_calls_and_tools_than_can_be_read(v13):
    calls = [call("add", "{}", f"c{i}") for i in range(MOST_CALLS + 1)]
    response = v13.ask(messages=[HI, called(*calls)], tools=TOOLS)
    assert response.status_code == 400
    assert f"{MOST_CALLS + 1} tool calls" in response.json()["detail"]
    tools = [
        {"type": "function", "function": {"name": f"f{i}"}}
        for i in range(MOST_TOOLS + 1)
    ]
    response = v13.ask(tools=tools)
    assert response.status_code == 400
    assert f"{MOST_TOOLS + 1} tools" in response.json()["detail"]


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [(1, 0, "messages[1].tool_calls[0].id"), (0, 1, "messages[2].tool_call_id")],
)
def test_a_long_id_is_refused(v13, ours, theirs, where):
    """Each is compared with each."""
    name = "c" * LONGEST_ID
    result = {"role": "tool", "content": "3"}
    result["tool_call_id"] = name + "c" * theirs
    asked = called(call("add", "{}", name + "c" * ours))
    response = v13.ask(messages=[HI, asked, result], tools=TOOLS)
    assert response.status_code == 400
    assert f"{where} has {LONGEST_ID + 1} characters" in response.json()["detail"]


def test_names_of_tools_that_are_long_together(v13):
    """All are in the grammar, where each may have 1,024 characters."""
    names = [f"{i:04}" + "f" * 1020 for i in range(LONGEST_NAMES // 1024 + 1)]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    response = v13.ask(tools=tools, prompt_tokens=[5])
    assert response.status_code == 400, response.text
    assert "have 66,560 characters together" in response.json()["detail"]
    assert "at most 65,536" in response.json()["detail"]
    assert v13.ask(tools=tools[1:], prompt_tokens=[5]).status_code == 200


@pytest.mark.parametrize(
    "messages",
    [
        [HI, called(WEATHER), SUNNY],
        [HI, called(WEATHER, ADD), SUM, SUNNY, HELLO, HI],
        [HI, HELLO, called(WEATHER), SUNNY, called(ADD), SUM],
    ],
)
def test_a_result_too_many(v13, messages):
    """MAX compares each with every call."""
    v13.answer("2.", messages=messages, tools=TOOLS)
    at = max(i for i, each in enumerate(messages) if each["role"] == "tool") + 1
    more = [*messages[:at], messages[at - 1], *messages[at:]]
    with pytest.raises(InputError, match=rf"messages\[{at}\] is the result of one"):
        read_messages(more, more, keeps_parts=True)
    assert v13.ask(messages=more, prompt_tokens=[5]).status_code == 400


def test_a_name_of_a_tool_that_cannot_be_written(v13):
    tool = {"type": "function", "function": {"name": "\ud800"}}
    response = v13.ask(tools=[tool])
    assert response.status_code == 400
    assert "tools[0] is named '\\ud800'" in response.json()["detail"]


@pytest.mark.parametrize("field", ["exclude", "max_tokens"])
def test_reasoning_that_cannot_be_had(v13, field):
    response = v13.ask(reasoning={field: 1})
    assert response.status_code == 400
    assert f"reasoning.{field} is not supported" in response.json()["detail"]
    v13.answer("2.", reasoning={"exclude": False, "max_tokens": None})


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_is_held_against_a_schema_of_the_clients(v13, monkeypatch, stream):
    """MAX would for its log: a ``$ref`` opens any file, a pattern takes for ever."""
    run = []
    monkeypatch.setattr(_tool_call_validation, "_build_validator", run.append)
    ask = v13.streamed if stream else v13.answer
    function = {"name": "add", "parameters": {"$ref": "file:///dev/zero"}}
    tools = [{"type": "function", "function": function}]
    assert ask(CALLS["v13"], tools=tools)["finish_reason"] == "tool_calls"
    form = {"name": "c", "schema": {"type": "object"}}
    form = {"type": "json_schema", "json_schema": form}
    assert ask("{}", response_format=form)["message"]["content"] == "{}"
    assert not run


@pytest.mark.parametrize("answer", ["Yes.", CALLS["v13"]])
def test_an_answer_can_be_sent_back_as_it_is(v13, answer):
    message = v13.answer(answer, tools=TOOLS)["message"]
    assert None in message.values()
    sent = [HI, message, HI]
    if message["tool_calls"]:
        results = [
            {"role": "tool", "tool_call_id": each["id"], "content": f"{i}."}
            for i, each in enumerate(message["tool_calls"])
        ]
        sent = [HI, message, *results]
    choice = v13.answer("Good.", messages=sent, tools=TOOLS)
    assert choice["message"]["content"] == "Good."
    said = answer
    if calls := message["tool_calls"]:
        ids = [each["id"] for each in calls]
        ends = [f"[TOOL_RESULTS]{n}:{i}.[/TOOL_RESULTS]" for i, n in enumerate(ids)]
        said = (
            f'[TOOL_CALLS]get_weather#{ids[0]}{{"city": "Åre ☺"}}'
            f'[TOOL_CALLS]add#{ids[1]}{{"a": 1}}</s>' + "".join(ends)
        )
    assert f"[/INST]{said}" in v13.prompt
