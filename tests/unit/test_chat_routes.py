"""Tools, thinking and JSON over MAX's own routes, with a played-back model."""

import json
import pickle
from pathlib import Path

import mistral_common
import pytest
from max.pipelines.context import GenerationStatus
from max.pipelines.lib.pipeline_variants.structured_output_backend import (
    make_grammar_backend,
)

from max_mistral.chat import schemas
from tests.chat_server import (
    TEMPLATE,
    ChatServer,
    make_config,
    write_real,
    write_vocabulary,
)

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "strict": True, "parameters": CITY},
    },
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {}},
    },
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALLS = {
    "v3": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Åre ☺"}}, '
    '{"name": "add", "arguments": {"a": 1}}]',
    "v11": '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Åre ☺"}'
    '[TOOL_CALLS]add[CALL_ID]abcdefghj[ARGS]{"a": 1}',
    "v13": '[TOOL_CALLS]get_weather[ARGS]{"city": "Åre ☺"}'
    '[TOOL_CALLS]add[ARGS]{"a": 1}',
    "none": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Åre ☺"}}\n'
    '</tool_call>\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
}
FIRST = {
    "v3": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Åre ☺"}}]',
    "v11": '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Åre ☺"}',
    "v13": '[TOOL_CALLS]get_weather[ARGS]{"city": "Åre ☺"}',
    "none": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Åre ☺"}}\n'
    "</tool_call>",
}
VERSIONS = list(CALLS)
MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool_call>", "[THINK]", "[/THINK]")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabularies")
    return {v: ChatServer(write_vocabulary(root / v, v)) for v in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def server(servers, version):
    return servers[version]


@pytest.fixture
def v13(servers):
    return servers["v13"]


def calls_of(choice):
    return [
        (c["function"]["name"], c["function"]["arguments"])
        for c in choice["message"].get("tool_calls") or []
    ]


TWO = [("get_weather", '{"city": "Åre ☺"}'), ("add", '{"a": 1}')]


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


@pytest.mark.parametrize(
    "file",
    [
        "mistral_instruct_tokenizer_240323.model.v3",
        "mistral_instruct_tokenizer_241114.model.v7",
        "tekken_240911.json",
    ],
)
def test_calls_in_a_real_vocabulary(tmp_path, file):
    tokenizer = Path(mistral_common.__file__).parent / "data" / file
    server = ChatServer(write_real(tmp_path / "real", tokenizer))
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
    "answer", ['[TOOL_CALLS]add[ARGS]{"a": }', '[TOOL_CALLS]add[ARGS]{"a": 1', "[TOOL_"]
)
def test_broken_calls_are_content(v13, answer):
    bare = answer.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    choice = v13.answer(answer, tools=TOOLS)
    assert (choice["message"]["content"], calls_of(choice)) == (bare, [])
    assert choice["finish_reason"] == "stop"
    streamed = v13.streamed(answer, tools=TOOLS)
    sent = "".join(a for call in calls_of(streamed) for a in call)
    assert sent + streamed["message"]["content"] == bare


def test_an_answer_cut_short_says_length(v13):
    v13.worker.status = GenerationStatus.MAXIMUM_LENGTH
    try:
        choice = v13.streamed('[TOOL_CALLS]add[ARGS]{"a": 1', tools=TOOLS)
    finally:
        v13.worker.status = GenerationStatus.END_OF_SEQUENCE
    assert choice["finish_reason"] == "length"


# Grammars: what the engine that masks tokens takes of each form.


def matcher(server, grammar):
    delegate = server.tokenizer.delegate
    backend = make_grammar_backend(
        "xgrammar",
        delegate,
        len(delegate),
        tool_parser_name=server.config.runtime.tool_parser,
        stop_token_ids={2},
        any_whitespace=True,
    )
    return backend.create_matcher(grammar)


def accepts(server, grammar, text):
    """Whether the text is a whole answer: 'yes', 'unfinished' or 'no'."""
    ids, m = server.ids(text), matcher(server, grammar)
    if m.try_consume_tokens(ids) < len(ids):
        return "no"
    return "yes" if m.try_consume_tokens([2]) == 1 else "unfinished"


def grammar_of(server, **body):
    server.ask("x", **body)
    return server.context.grammar


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


# Thinking.


def test_thinking_is_reasoning(v13):
    for at_a_time in (1, 2, 7, 1000):
        for ask in (v13.answer, v13.streamed):
            choice = ask("[THINK]Hm, ☺.[/THINK]Yes.", at_a_time=at_a_time)
            assert choice["message"]["reasoning"] == "Hm, ☺."
            assert choice["message"]["content"] == "Yes."


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


# JSON.


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}},
    ],
)
def test_json_without_a_flag(servers, response_format):
    server = servers["v3"]
    server.answer('{"city": "Åre"}', response_format=response_format)
    assert json.loads(server.context.json_schema)["type"] == "object"
    assert server.context.grammar_state.grammar_enforced
    assert server.config.sampling.structured_output_any_whitespace


def test_max_still_refuses_json_on_a_cpu_by_its_config(tmp_path):
    # When this fails MAX serves JSON on a CPU itself: settle_config can go.
    folder = write_vocabulary(tmp_path / "v3", "v3")
    with pytest.raises(ValueError, match="not currently supported on CPU"):
        make_config(folder, enable_structured_output=True)


def test_the_config_that_the_worker_gets_has_json(servers):
    # When this fails MAX pickles or copies its config in another way.
    for version, server in servers.items():
        config = pickle.loads(pickle.dumps(server.config))
        assert config.sampling.enable_structured_output
        assert config.needs_bitmask_constraints
        tags = version == "none"
        assert config.runtime.tool_parser == ("mistral_tags" if tags else "mistral")


def test_a_users_own_parser_stays(tmp_path):
    folder = write_vocabulary(tmp_path / "none", "none")
    server = ChatServer(folder, tool_parser="none")
    assert server.config.runtime.tool_parser is None
    assert server.config.sampling.enable_structured_output


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


BAD_SCHEMAS = {
    "of 1 MB": ({"enum": ["x" * 1_000_000]}, "1,000,0"),
    "deep": (deep(40), "levels"),
    "wide": ({"properties": {f"k{i}": {} for i in range(200)}}, "200 properties"),
    "wide in many places": (
        {
            "properties": {
                f"o{i}": {"properties": {f"k{i}": {} for i in range(50)}}
                for i in range(20)
            }
        },
        "1020 properties",
    ),
    "long in many places": (
        {"properties": {f"k{i}": {"maxLength": 900} for i in range(20)}},
        "18,000 together",
    ),
    "many choices": ({"enum": list(range(1000))}, "1000 choices"),
    "many parts": ({"anyOf": [{} for _ in range(3000)]}, "parts"),
    "long": ({"type": "string", "maxLength": 10**9}, "lengths"),
    "long pattern": ({"type": "string", "pattern": "a{1,99999}"}, "lengths"),
    "a wrong type": (
        {"properties": {"a": {"type": "strnig"}}},
        'Unsupported type "strnig"',
    ),
    "a wrong pattern": ({"properties": {"a": {"pattern": "(["}}}, "Unclosed"),
    "no such reference": ({"$ref": "#/$defs/x"}, "Cannot find"),
    "unsupported": ({"properties": {"a": {"not": {"type": "string"}}}}, "not"),
    "itself": ({"$ref": "#"}, "endless"),
    "a circle": (
        {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        },
        "endless",
    ),
    "required for ever": (
        {
            "$defs": {
                "a": {
                    "type": "object",
                    "properties": {"x": {"$ref": "#/$defs/a"}},
                    "required": ["x"],
                }
            },
            "$ref": "#/$defs/a",
        },
        "endless",
    ),
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_schema_that_cannot_be_used(servers, name):
    schema, says = BAD_SCHEMAS[name]
    response_format = {"type": "json_schema", "json_schema": {"name": "c"}}
    response_format["json_schema"]["schema"] = schema
    tool = {"name": "f", "strict": True, "parameters": schema}
    for server in (servers["v3"], servers["v13"]):
        for body, what in (
            ({"response_format": response_format}, "response_format"),
            ({"tools": [{"type": "function", "function": tool}]}, "tool 'f'"),
        ):
            response = server.ask(**body)
            assert response.status_code == 400, response.text
            detail = response.json()["detail"]
            assert detail.startswith(f"The JSON schema of {what} ")
            assert says in detail
            assert "xgrammar" not in detail


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        deep(12),
        {
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {
                        "v": {"type": "integer"},
                        "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
                        "all": {"type": "array", "items": {"$ref": "#/$defs/n"}},
                    },
                    "required": ["v", "next", "all"],
                }
            },
            "$ref": "#/$defs/n",
        },
    ],
)
def test_a_schema_that_can(schema):
    schemas.check_schema(schema, "response_format")


# Bad input.

CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_0123456789abcdef",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1}'},
        }
    ],
}
USER = {"role": "user", "content": "Q?"}
RESULT = {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "2"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tools": TOOLS, "tool_choice": NAMED | {"function": {"name": "x"}}}, "'x'"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "Two tools are named 'get_weather'"),
        ({"tool_choice": "required"}, "has no tools"),
        ({"tool_choice": NAMED}, "has no tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "use tools"),
        ({"messages": [USER, RESULT]}, "messages[1] has role 'tool' after user"),
        (
            {"messages": [USER, {"role": "assistant", "content": "A"}, RESULT]},
            "messages[2] is the result",
        ),
        ({"messages": [USER, CALLED, RESULT, RESULT]}, "messages[3] is the result"),
        ({"messages": [USER, CALLED, RESULT | {"tool_call_id": "x"}]}, "'x'"),
        ({"messages": [USER, CALLED, USER]}, "tool_call"),
        ({"messages": [RESULT, USER]}, "messages[0] has role 'tool' after nothing"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "system or user"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "A"},
                    {"role": "system", "content": "S"},
                ]
            },
            "messages[2] has role 'system' after assistant, where assistant, user or",
        ),
    ],
)
def test_bad_input_is_a_400_in_words(v13, body, says):
    response = v13.ask(**body)
    assert response.status_code == 400, response.text
    assert says in response.json()["detail"]


# History.


def test_foreign_ids_become_nine_alphanumerics(v13):
    v13.answer("2.", messages=[USER, CALLED, RESULT], tools=TOOLS)
    call = v13.prompt.split("add#")[1][:9]
    assert call.isalnum()
    assert f"[TOOL_RESULTS]{call}:2" in v13.prompt
    first = v13.prompt
    # The same in the next turn, for a cached prefix.
    v13.answer("3.", messages=[USER, CALLED, RESULT, USER], tools=TOOLS)
    assert v13.prompt.startswith(first)


@pytest.mark.parametrize("call_id", ["", "\ud800", "x" * 10_000])
def test_any_id_is_shortened(v13, call_id):
    called = json.loads(json.dumps(CALLED))
    called["tool_calls"][0]["id"] = call_id
    result = RESULT | {"tool_call_id": call_id}
    v13.answer("2.", messages=[USER, called, result], tools=TOOLS)
    assert v13.prompt.split("add#")[1][:9].isalnum()


def test_an_id_of_ours_stays(v13):
    called = json.loads(
        json.dumps(CALLED).replace("call_0123456789abcdef", "aB3dE6gH9")
    )
    v13.answer("2.", messages=[USER, called, RESULT | {"tool_call_id": "aB3dE6gH9"}])
    assert "add#aB3dE6gH9" in v13.prompt


def test_tools_in_words_where_the_template_has_none(servers):
    server = servers["none"]
    system = {"role": "system", "content": "Be brief."}
    server.answer("2.", messages=[system, USER, CALLED, RESULT], tools=TOOLS)
    prompt = server.prompt
    assert prompt.startswith("<system>Be brief.\n\n")
    assert '{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "<user><tool_response>\n2\n</tool_response>" in prompt
    assert '"description": "Adds."' in prompt
    server.answer("2.")
    assert "tool" not in server.prompt


@pytest.mark.parametrize("levels", [100, 400, 5000])
@pytest.mark.parametrize("strict", ["true", "false"])
def test_json_nested_beyond_reason(v13, levels, strict):
    schema = '{"items": ' * levels + "{}" + "}" * levels
    body = (
        '{"model": "m", "messages": [{"role": "user", "content": "Q?"}], "tools": '
        '[{"type": "function", "function": {"name": "f", "strict": '
        f'{strict}, "parameters": {schema}}}}}]}}'
    )
    response = v13.post(body)
    if levels < 5000 and strict == "false":
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        assert "levels" in response.json()["detail"]
