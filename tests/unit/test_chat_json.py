"""JSON and its schemas over MAX's own routes, and what a schema may be."""

import json
import pickle

import pytest
from max.pipelines.context.exceptions import InputError

from max_mistral.chat import schemas
from tests.routes import Routes, configure
from tests.tools import CITY, TOOLS
from tests.vocabularies import write_vocabulary


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


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_text_is_free(servers, tools):
    for server in servers.values():
        more = {} if tools is None else {"tools": tools}
        form = {"type": "text"}
        choice = server.answer("Hi", response_format=form, **more)
        assert choice["message"]["content"] == "Hi"
        assert server.context.json_schema is None
        assert not server.context.grammar_state.grammar_enforced


def test_max_still_refuses_json_on_a_cpu_by_its_config(tmp_path):
    # When this fails MAX serves JSON on a CPU itself: settle_config can go.
    folder = write_vocabulary(tmp_path / "v3", "v3")
    with pytest.raises(ValueError, match="not currently supported on CPU"):
        configure(folder, enable_structured_output=True)


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
    server = Routes(folder, tool_parser="none")
    assert server.config.runtime.tool_parser is None
    assert server.config.sampling.enable_structured_output


def agents_tool(name, properties):
    """As agents' libraries make them of a function: strict, all required."""
    names = [f"{name}_{i}" for i in range(properties)]
    schema = {
        "type": "object",
        "properties": {n: {"type": "string", "description": "d" * 80} for n in names},
        "required": names,
        "additionalProperties": False,
    }
    function = {"name": name, "strict": True, "parameters": schema}
    return {"type": "function", "function": function}


def test_the_tools_of_agents(servers):
    tools = [agents_tool(f"tool{i}", 5) for i in range(100)]
    parameters = [tool["function"]["parameters"] for tool in tools]
    schemas.check_together(parameters)
    for schema in parameters:
        schemas.check_schema(schema, "a tool", is_object=True)
    refused = servers["v13"].ask(tools=[*tools, agents_tool("last", 13)])
    assert refused.status_code == 400
    assert "The 101 strict tools have 513 properties together" in refused.text
    assert "at most 512" in refused.text


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "maxLength": 1_000}, "11,000 characters and items"),
        ({"enum": list(range(500))}, "5,500 choices in enums"),
        ({"description": "x" * 25_000}, "275,660 characters"),
    ],
)
def test_strict_tools_that_are_too_much_together(schema, says):
    parameters = {"type": "object", "properties": {"a": schema}}
    schemas.check_together([parameters] * 10)
    with pytest.raises(InputError, match=f"The 11 strict tools have {says}"):
        schemas.check_together([parameters] * 11)


def test_tools_of_many_characters_together(v13):
    """Forced calls of tools without strict are then of any object."""
    with pytest.raises(InputError, match="1,200,280 characters together; at most 262,"):
        schemas.check_together([{"enum": ["x" * 60_000]}] * 20)
    parameters = {"type": "object", "description": "x" * 60_000}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": parameters}}
        for i in range(20)
    ]
    forced = {"tool_choice": "required", "prompt_tokens": [5]}
    assert v13.ask(tools=tools[:2], **forced).status_code == 200
    assert "xxx" in v13.context.grammar
    assert v13.ask(tools=tools, **forced).status_code == 200
    assert "xxx" not in v13.context.grammar


def test_tools_that_are_not_strict_have_no_limit(servers):
    """As those of MCP servers: any object is an argument."""
    schema = {"type": "object", "properties": {str(i): {} for i in range(520)}}
    function = {"name": "f", "parameters": schema}
    tools = [{"type": "function", "function": function}]
    answer = servers["v13"].ask(tools=tools, tool_choice="required")
    assert answer.status_code == 200, answer.text


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
    "many choices": ({"enum": list(range(6000))}, "6000 choices"),
    "many parts": ({"anyOf": [{} for _ in range(3000)]}, "parts"),
    "long": ({"type": "string", "maxLength": 10**9}, "lengths"),
    "endless": ({"type": "string", "minLength": -1e400}, "not finite"),
    "no number": ({"type": "string", "maxLength": float("nan")}, "not finite"),
    "half a character": ({"enum": ["\ud800"]}, "a lone surrogate such as"),
    "a count that is text": ({"type": "array", "minItems": "3"}, "minItems"),
    "choices that are no list": ({"allOf": 5}, "allOf"),
    "a name that is no text": ({"properties": {}, "required": [[1]]}, "mismatch"),
    "long pattern": ({"type": "string", "pattern": "a{1,99999}"}, "lengths"),
    "long patterns of names": (
        {"patternProperties": {"a{6000}": {}, "b{6000}": {}}},
        "12,000 together",
    ),
    # Its counts add up.
    "pattern of many parts": (
        {"type": "string", "pattern": "[a-z]{9000}" * 300},
        "lengths",
    ),
    "a wrong type": (
        {"properties": {"a": {"type": "strnig"}}},
        'Unsupported type "strnig"',
    ),
    "a wrong pattern": ({"properties": {"a": {"pattern": "(["}}}, "Unclosed"),
    "no such reference": ({"$ref": "#/$defs/x"}, "Cannot find"),
    "unsupported": ({"properties": {"a": {"not": {"type": "string"}}}}, "not"),
    "itself": ({"$ref": "#"}, "endless"),
    "itself as one of several parts": ({"allOf": [{}, {"$ref": "#"}]}, "endless"),
    "an item of itself": (
        {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
        "endless",
    ),
    "branches that all lead back": (
        {
            "oneOf": [
                {"$ref": "#"},
                {"type": "array", "minItems": 2, "items": {"$ref": "#"}},
                {
                    "type": "object",
                    "properties": {"x": {"$ref": "#"}},
                    "required": ["x"],
                },
            ]
        },
        "endless",
    ),
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
        {"enum": [f"value {i}" for i in range(1000)]},
        {"description": "x" * 50_000, "properties": {"a": {}}},
        {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
        # Two references to the same are no circle.
        {
            "$defs": {"s": {"type": "string"}},
            "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/s"}},
            "required": ["a", "b"],
        },
        # Nor is one that no item need have.
        {"type": "array", "items": {"$ref": "#"}},
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


@pytest.mark.parametrize("levels", [100, 400, 5000])
@pytest.mark.parametrize("strict", ["true", "false"])
def test_json_nested_beyond_reason(v13, levels, strict):
    schema = '{"items": ' * levels + "{}" + "}" * levels
    body = (
        '{"model": "m", "messages": [{"role": "user", "content": "Q?"}], "tools": '
        '[{"type": "function", "function": {"name": "f", "strict": '
        f'{strict}, "parameters": {schema}}}}}]}}'
    )
    response = v13.post_text("chat/completions", body)
    if levels < 5000 and strict == "false":
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        assert "levels" in response.json()["detail"]
