"""Thinking over MAX's own routes, with a played-back model."""

import json

import pytest
from max.pipelines.context import GenerationStatus

from tests.routes import EOS, Routes, joined
from tests.tools import CALLS, CITY, TOOLS, TWO, accepts, calls_of
from tests.vocabularies import write_vocabulary


def test_thinking_is_reasoning(v13):
    for at_a_time in (1, 2, 7, 1000):
        for ask in (v13.answer, v13.streamed):
            choice = ask("[THINK]Hm, ☺.[/THINK]Yes.", at_a_time=at_a_time)
            assert choice["message"]["reasoning"] == "Hm, ☺."
            assert choice["message"]["content"] == "Yes."


@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_for_the_other_name_of_thinking(tmp_path, flag):
    """Whole and streamed: the one field or the other, and never both."""
    folder = write_vocabulary(tmp_path / "v13", "v13")
    routes = Routes(folder, max_length=8192, emit_reasoning_content=flag)
    name, other = ("reasoning_content", "reasoning")[:: 1 if flag else -1]
    text = "[THINK]Hm, ☺.[/THINK]"
    # Also where there is nothing but thinking.
    for content in ("Yes.", ""):
        message = routes.answer(text + content)["message"]
        assert message[name] == "Hm, ☺."
        assert not message.get(other)
        events = routes.ask(text + content, stream=True).text.split("data: ")[1:-1]
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        assert "".join(d.get(name) or "" for d in deltas) == "Hm, ☺."
        assert not any(d.get(other) for d in deltas)


def test_thinking_before_calls(v13):
    for ask in (v13.answer, v13.streamed):
        for end in ("[/THINK]", ""):  # a call ends thinking too
            choice = ask(f"[THINK]Hm.{end}" + CALLS["v13"], tools=TOOLS)
            assert choice["message"]["reasoning"] == "Hm."
            assert calls_of(choice) == TWO
            assert choice["message"]["content"] == ""


def test_thinking_unfinished_is_reasoning(v13):
    v13.worker.status = GenerationStatus.MAXIMUM_LENGTH
    try:
        choice = v13.answer("[THINK]Hm")
    finally:
        v13.worker.status = GenerationStatus.END_OF_SEQUENCE
    assert choice["message"]["reasoning"] == "Hm"


def test_thinking_across_turns(v13):
    chat = [
        {"role": "user", "content": "Q?"},
        {"role": "assistant", "content": "A.", "reasoning": "Hm."},
        {"role": "user", "content": "And?"},
    ]
    choice = v13.answer("Plain.", messages=chat)
    assert "[THINK]Hm.[/THINK]A." in v13.prompt
    assert choice["message"]["content"] == "Plain."
    assert not choice["message"].get("reasoning")
    assert v13.answer("[THINK]B[/THINK]C", messages=chat)["message"]["reasoning"] == "B"


def test_thinking_is_inert_without_its_tokens(servers):
    choice = servers["v3"].answer("[THINK]Hm.[/THINK]Yes.")
    assert choice["message"]["content"] == "[THINK]Hm.[/THINK]Yes."
    assert not choice["message"].get("reasoning")
    assert servers["v3"].tokenizer.reasoning_start_token_id == -1


def test_thinking_before_json(v13):
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    answer = '[THINK]Hm.[/THINK]{"city": "Åre"}'
    choice = v13.answer(answer, response_format=schema)
    assert choice["message"]["reasoning"] == "Hm."
    assert json.loads(choice["message"]["content"]) == {"city": "Åre"}
    grammar = v13.context.grammar
    assert v13.context.grammar_state.grammar_enforced
    assert accepts(v13, grammar, answer) == "yes"
    assert accepts(v13, grammar, '{"city": "Åre"}') == "yes"
    assert accepts(v13, grammar, "[THINK]Hm.[/THINK]Hello") == "no"


def test_an_answer_that_is_all_thinking(v13):
    """MAX would make it the text of an answer, and read calls in it."""
    thought = 'Hm, [TOOL_CALLS]add[ARGS]{"a": 1}'
    v13.worker.answer = [
        *v13.ids("[THINK]"),
        *(i for char in thought for i in v13.ids(char)),
        *v13.ids("[/THINK]"),
        EOS,
    ]
    answer = v13.chat(tools=TOOLS).json()["choices"][0]
    stream = joined(v13.chat(tools=TOOLS, stream=True).text)
    for choice in (answer, stream):
        assert choice["message"]["reasoning"] == thought
        assert not choice["message"]["content"]
        assert not choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "stop"
