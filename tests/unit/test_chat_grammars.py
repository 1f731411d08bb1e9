"""Grammars: what the engine that masks tokens takes of each form of call."""

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
