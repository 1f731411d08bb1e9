"""Grammars: what the engine that masks tokens takes of each form of call."""

import functools
import json
import string

import pytest

from max_mistral.chat import schemas
from tests.tools import CALLS, CITY, FIRST, NAMED, TOOLS, accepts, grammar_of


def test_the_grammar_takes_what_the_parser_reads(server, version):
    grammar = grammar_of(server, tools=TOOLS, tool_choice="required")
    assert accepts(server, grammar, CALLS[version]) == "yes"
    assert accepts(server, grammar, FIRST[version]) == "yes"
    assert accepts(server, grammar, "Hello") == "no"
    assert accepts(server, grammar, "") == "unfinished"
    assert accepts(server, grammar, FIRST[version][:-8]) == "unfinished"


def test_the_grammar_enforces_strict_parameters(server, version):
    grammar = grammar_of(server, tools=TOOLS, tool_choice="required")
    for wrong in ('{"town": "Åre ☺"}', '{"city": 3}', "{}", '{"city": "x", "y": 1}'):
        text = FIRST[version].replace('{"city": "Åre ☺"}', wrong)
        assert accepts(server, grammar, text) == "no", wrong
    # The other tool is not strict: any object.
    free = FIRST[version].replace("get_weather", "add")
    assert accepts(server, grammar, free) == "yes"
    assert accepts(server, grammar, free.replace('{"city": "Åre ☺"}', "[1]")) == "no"


def test_a_named_tool_is_called_once(server, version):
    grammar = grammar_of(server, tools=TOOLS, tool_choice=NAMED)
    assert accepts(server, grammar, FIRST[version]) == "yes"
    assert (
        accepts(server, grammar, FIRST[version].replace("get_weather", "add")) == "no"
    )
    twice = FIRST[version] + FIRST[version]
    assert accepts(server, grammar, twice) == "no"


def test_one_call_by_grammar(server, version):
    body = {"tools": TOOLS, "tool_choice": "required"}
    single = grammar_of(server, parallel_tool_calls=False, **body)
    assert accepts(server, single, FIRST[version]) == "yes"
    assert accepts(server, single, CALLS[version]) == "no"
    # The next request's is its own.
    assert accepts(server, grammar_of(server, **body), CALLS[version]) == "yes"


def test_calls_or_json(server, version):
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    grammar = grammar_of(server, tools=TOOLS, response_format=schema)
    assert accepts(server, grammar, FIRST[version]) == "yes"
    assert accepts(server, grammar, '{"city": "Åre"}') == "yes"
    assert accepts(server, grammar, '{"town": "Åre"}') == "no"


def test_thinking_comes_before_forced_calls(v13):
    grammar = grammar_of(v13, tools=TOOLS, tool_choice="required")
    assert (
        accepts(v13, grammar, "[THINK]So {x} [INST]?[/THINK]" + FIRST["v13"]) == "yes"
    )
    for wrong in ("[THINK]So", "[THINK]So[/THINK]", "[THINK]So</s>[/THINK]"):
        assert accepts(v13, grammar, wrong) != "yes"


def loose(**schema):
    """A tool without ``strict``, whose argument ``a`` is of a schema."""
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {"type": "function", "function": {"name": "add", "parameters": parameters}}


def takes(server, version, tool, arguments, choice):
    grammar = grammar_of(server, tools=[TOOLS[0], tool], tool_choice=choice)
    text = FIRST[version].replace("get_weather", "add")
    return accepts(server, grammar, text.replace('{"city": "Åre ☺"}', arguments))


ADD = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize("choice", ["required", ADD])
def test_a_forced_call_fits_its_schema(server, version, choice):
    tool = loose(type="integer")
    assert takes(server, version, tool, '{"a": 1}', choice) == "yes"
    for wrong in ('{"a": "1"}', "{}", '{"b": 1}'):
        assert takes(server, version, tool, wrong, choice) == "no"
        assert takes(server, version, tool, wrong, "auto") == "yes"


def test_what_a_grammar_cannot_hold_is_left_out(server, version):
    tool = loose(type="integer", multipleOf=3)
    assert takes(server, version, tool, '{"a": 1}', "required") == "yes"
    assert takes(server, version, tool, '{"a": "1"}', "required") == "no"
    # With strict it is refused.
    strict = {**tool, "function": tool["function"] | {"strict": True}}
    answer = server.ask(tools=[strict], tool_choice="required")
    assert answer.status_code == 400


LOOP = {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}
CANNOT_HOLD = {
    "nowhere": {"$ref": "#/nowhere"},
    "endless": {"type": "object", "properties": {"b": LOOP}, "required": ["b"]},
    "a wrong type": {"type": "whole"},
    "many choices": {"enum": [f"c{i}" for i in range(51)]},
    "deep": functools.reduce(
        lambda s, _: {"items": s}, range(schemas.MAX_DEPTH + 1), {}
    ),
}


@pytest.mark.parametrize("what", CANNOT_HOLD)
def test_a_schema_that_a_grammar_cannot_hold_is_any_object(
    server, version, what, monkeypatch
):
    monkeypatch.setattr(schemas, "MAX_CHOICES", 50)
    tool = loose(**CANNOT_HOLD[what])
    assert takes(server, version, tool, '{"a": [], "b": 2}', "required") == "yes"
    assert takes(server, version, tool, "[]", "required") == "no"
    # The other tool's is held to all the same.
    other = {"type": "function", "function": TOOLS[0]["function"] | {"strict": False}}
    grammar = grammar_of(server, tools=[other, tool], tool_choice="required")
    wrong = FIRST[version].replace("city", "town")
    assert accepts(server, grammar, FIRST[version]) == "yes"
    assert accepts(server, grammar, wrong) == "no"


def test_many_forced_tools_are_of_any_object(server, version, monkeypatch):
    monkeypatch.setattr(schemas, "MAX_CHOICES", 50)
    tools = [loose(enum=[f"c{i}" for i in range(50)]) for _ in range(2)]
    tools[1]["function"] = tools[1]["function"] | {"name": "other"}
    grammar = grammar_of(server, tools=tools, tool_choice="required")
    text = FIRST[version].replace("get_weather", "other")
    assert accepts(server, grammar, text) == "yes"


def test_forced_tools_are_bounded_as_they_are_compiled(v13, monkeypatch):
    """With any text written around their patterns."""
    pattern = "$|".join(string.ascii_lowercase)
    tools = [loose(type="string", pattern=pattern) for _ in range(2)]
    tools[1]["function"] = tools[1]["function"] | {"name": "other"}
    text = FIRST["v13"].replace("get_weather", "other")
    sent = len(json.dumps([tool["function"]["parameters"] for tool in tools]))
    for limit in ("MAX_CHARACTERS_TOGETHER", "MAX_CHARACTERS"):
        grammar = grammar_of(v13, tools=tools, tool_choice="required")
        assert accepts(v13, grammar, text) == "no"
        with monkeypatch.context() as patch:
            patch.setattr(schemas, limit, sent)
            grammar = grammar_of(v13, tools=tools, tool_choice="required")
            assert accepts(v13, grammar, text) == "yes"
