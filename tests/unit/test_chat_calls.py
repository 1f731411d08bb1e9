"""Tool calls over MAX's own routes, with a played-back model."""

import pytest
from max.pipelines.context import GenerationStatus

from tests.routes import Routes
from tests.tools import CALLS, MARKERS, NAMED, TOOLS, TWO, accepts, calls_of
from tests.vocabularies import TEMPLATE, write_real


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
@pytest.mark.parametrize("before", ["", "Let me look. "])
def test_calls_streamed_and_not(server, version, before, at_a_time):
    answer = before + CALLS[version]
    for ask in (server.answer, server.streamed):
        choice = ask(answer, tools=TOOLS, at_a_time=at_a_time)
        assert calls_of(choice) == TWO
        assert choice["message"]["content"] == before
        assert choice["finish_reason"] == "tool_calls"
        ids = [c["id"] for c in choice["message"]["tool_calls"]]
        assert len(set(ids)) == 2
        assert all(len(i) == 9 and i.isalnum() for i in ids)


@pytest.mark.parametrize("kind", ["v3", "v7", "v3 tekken, images"])
def test_calls_in_a_real_vocabulary(tmp_path, kind):
    server = Routes(write_real(tmp_path / "real", kind))
    server.tokenizer.delegate.chat_template = TEMPLATE
    for space in ("", " "):
        answer = "Well. " + CALLS["v3"].replace("]", "]" + space, 1)
        for ask in (server.answer, server.streamed):
            for at_a_time in (1, 2, 5, 1000):
                choice = ask(answer, tools=TOOLS, at_a_time=at_a_time)
                assert calls_of(choice) == TWO
                assert choice["message"]["content"].strip() == "Well."
    # By this one token MAX sees, with tool_choice auto, where a call begins.
    assert len(server.ids("[TOOL_CALLS]")) == 1
    server.ask(tools=TOOLS, tool_choice="required")
    assert accepts(server, server.context.grammar, CALLS["v3"]) == "yes"
    assert accepts(server, server.context.grammar, "No.") == "no"


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED])
def test_a_grammar_for_each_choice(server, choice):
    server.ask(CALLS["v13"], tools=TOOLS, tool_choice=choice)
    context = server.context
    assert context.grammar
    assert context.grammar_state.grammar_enforced == (choice in ("required", NAMED))


def test_no_marker_where_no_tool_may_be_called(server, version):
    for body in ({"tools": TOOLS, "tool_choice": "none"}, {}):
        for ask in (server.answer, server.streamed):
            choice = ask("Well. " + CALLS[version], **body)
            assert choice["message"]["content"].startswith("Well. ")
            assert not calls_of(choice)
            if version != "none":  # there, a marker is text like any other
                assert not any(m in choice["message"]["content"] for m in MARKERS)


def test_one_call_where_calls_may_not_be_parallel(server, version):
    for ask in (server.answer, server.streamed):
        choice = ask(CALLS[version], tools=TOOLS, parallel_tool_calls=False)
        assert calls_of(choice) == TWO[:1]
    assert len(calls_of(server.answer(CALLS[version], tools=TOOLS))) == 2


@pytest.mark.parametrize(
    "answer",
    [
        '[TOOL_CALLS]add[ARGS]{"a": }',
        '[TOOL_CALLS]add[ARGS]{"a": 1',
        "[TOOL_",
        '[TOOL_CALLS]add[ARGS]{"a": "x[TOOL',
    ],
)
def test_broken_calls_are_content(v13, answer):
    bare = answer.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    choice = v13.answer(answer, tools=TOOLS)
    assert (choice["message"]["content"], calls_of(choice)) == (bare, [])
    assert choice["finish_reason"] == "stop"
    streamed = v13.streamed(answer, tools=TOOLS)
    sent = "".join(a for call in calls_of(streamed) for a in call)
    assert sent + streamed["message"]["content"] == bare
    # A client that reads "tool_calls" reads the arguments.
    assert streamed["finish_reason"] == "stop"
    after_a_whole_one = CALLS["v13"] + answer
    for ask in (v13.answer, v13.streamed):
        choice = ask(after_a_whole_one, tools=TOOLS)
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "call",
    [
        r'{"name": "\ud800", "arguments": {}}',
        r'{"name": "add", "arguments": "{\"a\": \"\ud83d\"}"}',
    ],
)
def test_half_of_a_character_is_no_call(servers, call):
    answer = f"<tool_call>{call}</tool_call>"
    for ask in (servers["none"].answer, servers["none"].streamed):
        choice = ask(answer, tools=TOOLS)
        assert not calls_of(choice)
        assert r"\ud8" in choice["message"]["content"]


def test_a_long_name(v13):
    name = "f" * 1024
    tools = [{"type": "function", "function": {"name": name}}]
    for ask in (v13.answer, v13.streamed):
        choice = ask(f"[TOOL_CALLS]{name}[ARGS]{{}}", tools=tools)
        assert calls_of(choice) == [(name, "{}")]


def test_an_answer_cut_short_says_length(v13):
    v13.worker.status = GenerationStatus.MAXIMUM_LENGTH
    try:
        choice = v13.streamed('[TOOL_CALLS]add[ARGS]{"a": 1', tools=TOOLS)
    finally:
        v13.worker.status = GenerationStatus.END_OF_SEQUENCE
    assert choice["finish_reason"] == "length"
