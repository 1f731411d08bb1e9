"""Schemas that pydantic writes, and the grammar's compiler takes in another form."""

import copy
import json
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import UUID4, BaseModel, Field, FilePath, SecretStr

from max_mistral.chat.patterns import searched
from max_mistral.chat.schema_forms import compilable
from max_mistral.chat.schemas import MAX_DEPTH, MAX_NODES, check_size
from tests.tools import accepts, grammar_of


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    friend: "Cat | Dog | None" = None


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Shelter(BaseModel):
    of: Literal["shelter"]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Town(BaseModel):
    places: list[Annotated[Shelter | Cat, Field(discriminator=None)]]
    parts: "list[Annotated[Quarter | Road, Field(discriminator='is_a')]]"


class Road(BaseModel):
    is_a: Literal["road"]


class Quarter(BaseModel):
    is_a: Literal["quarter"]
    town: Town


class Formats(BaseModel):
    key: UUID4
    other: UUID
    path: FilePath
    word: SecretStr


def form(schema):
    before = copy.deepcopy(schema)
    found = compilable(schema, lambda found: check_size(found, ""))
    assert schema == before
    return found


def test_a_union_of_models(v13):
    schema = Owner.model_json_schema()
    assert "$ref" in str(schema["properties"]["pet"]["oneOf"])
    tool = {"name": "keep", "strict": True, "parameters": schema}
    tools = [{"type": "function", "function": tool}]
    found = grammar_of(v13, tools=tools, tool_choice="required")
    for arguments, answer in {
        '{"pet": {"kind": "cat", "lives": 9}}': "yes",
        '{"pet": {"kind": "dog", "friend": {"kind": "cat", "lives": 1}}}': "yes",
        '{"pet": {"kind": "cat"}}': "no",
        '{"pet": {"kind": "cow", "lives": 9}}': "no",
        '{"pet": {"kind": "dog", "lives": 9}}': "no",
    }.items():
        text = f"[TOOL_CALLS]keep[ARGS]{arguments}"
        assert accepts(v13, found, text) == answer, arguments


def test_a_union_is_an_answers_too(server):
    named = {"name": "it", "schema": Owner.model_json_schema()}
    answer = server.ask(
        "x", response_format={"type": "json_schema", "json_schema": named}
    )
    assert answer.status_code == 200, answer.text
    context = server.context
    said = json.dumps(context.json_schema) + str(context.grammar)
    assert "anyOf" in said
    assert "oneOf" not in said


def test_formats():
    found = form(Formats.model_json_schema())["properties"]
    assert found["key"]["format"] == found["other"]["format"] == "uuid"
    assert "format" not in found["path"] | found["word"]
    # Those that a validator knows stay, to be held to or refused by name.
    assert form({"format": "idn-email"}) == {"format": "idn-email"}
    assert form({"items": [{"format": "x"}, True]}) == {"items": [{}, True]}


def test_what_is_no_schema_stays():
    data = {"format": "path", "oneOf": [{"$ref": "#/$defs/a"}]}
    schema = {
        "$defs": {"a": {"type": "string"}, "format": {"type": "object"}},
        "properties": {"format": {"const": data}, "oneOf": {"enum": [data]}},
        "default": data,
    }
    assert form(schema) == schema
    for other in (True, False, None, 3, "text", [data]):
        assert form(other) == other


def test_unions_within_unions_and_of_themselves(v13):
    schema = Town.model_json_schema()
    assert "oneOf" in json.dumps(schema)
    tool = {"name": "build", "strict": True, "parameters": schema}
    tools = [{"type": "function", "function": tool}]
    found = grammar_of(v13, tools=tools, tool_choice="required")
    inner = '{"places": [], "parts": [{"is_a": "road"}]}'
    for parts, answer in {
        '{"is_a": "road"}': "yes",
        f'{{"is_a": "quarter", "town": {inner}}}': "yes",
        '{"is_a": "quarter"}': "no",
        '{"is_a": "street"}': "no",
    }.items():
        text = f'[TOOL_CALLS]build[ARGS]{{"places": [], "parts": [{parts}]}}'
        assert accepts(v13, found, text) == answer, parts


def kind(*texts, **more):
    """An object whose required property says what it is."""
    properties = {"kind": {"enum": list(texts)}}
    return {"type": "object", "properties": properties, "required": ["kind"]} | more


APART = [
    [kind("a"), kind("b")],
    [kind("a", "b"), kind("c"), {"type": "null"}],
    [{"type": "string"}, {"type": "array"}],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b", "title": "B"}],
    [{"type": "string"}],
]
NOT_APART = [
    [kind("a"), kind("a", "b")],
    [kind("a"), kind("b", required=[])],
    [kind("a"), {"type": "object"}],
    [{"type": "integer"}, {"type": "number"}],
    [{"type": "string"}, {"type": "string"}],
    [{"type": ["string", "null"]}, {"type": "array"}],
    [{"type": "string"}, {}],
    [{"type": "string"}, True],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/nowhere"}],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/list/0"}],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/itself"}],
    [{"$ref": "#/$defs/a"}, {"$ref": "https://example.org/schema.json"}],
    [{"$ref": "#/$defs/a"}, {"$ref": 3}],
    [kind("a"), kind("b") | {"properties": {"kind": {"enum": [3]}}}],
    [kind(str(i)) for i in range(65)],
]
DEFS = {
    **{"a": kind("a"), "b": kind("b"), "list": [1]},
    "itself": {"$ref": "#/$defs/itself"},
}


@pytest.mark.parametrize("choices", APART)
def test_choices_that_are_told_apart(choices):
    schema = {"$defs": DEFS, "oneOf": choices, "discriminator": {}, "title": "T"}
    assert form(schema) == {"$defs": DEFS, "anyOf": choices, "title": "T"}
    both = schema | {"anyOf": [True]}
    assert form(both) == both


@pytest.mark.parametrize("choices", NOT_APART)
def test_choices_that_are_not(choices):
    schema = {"$defs": DEFS, "oneOf": choices}
    assert form(schema) == schema


PATTERNS = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "pattern": "^https://", "minLength": 8},
        "pattern": {"type": "string", "pattern": "[0-9]"},
    },
    "required": ["url", "pattern"],
}


@pytest.mark.parametrize(
    ("url", "number", "answer"),
    [
        ("https://x.org", "a1", "yes"),
        ("https://", 'No "1"\n', "yes"),
        ("http://x.org", "1", "no"),
        (" https://x.org", "1", "no"),
        ("https://x.org", "one", "no"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_patterns_are_searched_for(v13, url, number, answer, strict):
    tool = {"name": "get", "strict": strict, "parameters": PATTERNS}
    tools = [{"type": "function", "function": tool}]
    found = grammar_of(v13, tools=tools, tool_choice="required")
    arguments = json.dumps({"url": url, "pattern": number})
    assert accepts(v13, found, f"[TOOL_CALLS]get[ARGS]{arguments}") == answer


def test_names_of_properties_are_searched_for():
    named = {"patternProperties": {"^x-": {"pattern": "a"}, "^y$": True}}
    (first, inner), (second, _) = form(named)["patternProperties"].items()
    assert (first, second) == (searched("^x-"), "y")
    assert inner == {"pattern": searched("a")}
    # Of two that become one none is lost.
    twice = {"patternProperties": {"^a": {}, "^^a": {"type": "string"}}}
    assert form(twice) == twice
    assert form({"propertyNames": {"pattern": "^a"}})["propertyNames"] == {
        "pattern": searched("^a")
    }


@pytest.mark.parametrize(
    "schema", [{"pattern": "a^b"}, {"patternProperties": {"a$b": {}}}]
)
def test_anchors_in_no_place_of_their_own(v13, schema):
    schema = {"type": "object", "properties": {"a": schema}}
    tool = {"name": "f", "strict": True, "parameters": schema}
    body = {"tools": [{"type": "function", "function": tool}]}
    answer = v13.ask("x", **body)
    assert answer.status_code == 400, answer.text
    assert "The JSON schema of tool 'f' has the pattern 'a" in answer.json()["detail"]
    tool["strict"] = False
    found = grammar_of(v13, tool_choice="required", **body)
    assert accepts(v13, found, '[TOOL_CALLS]f[ARGS]{"b": 1}') == "yes"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pattern": "a", "maxLength": 9}, "the length bounds"),
        ({"pattern": r"\ba"}, "error: Word boundary"),  # whose position is not ours
    ],
)
def test_what_a_pattern_cannot_have(v13, more, says):
    schema = {"type": "object", "properties": {"a": {"type": "string"} | more}}
    named = {"name": "it", "schema": schema}
    form = {"type": "json_schema", "json_schema": named}
    answer = v13.ask("x", response_format=form)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["detail"]


def test_what_is_too_large_stays():
    wide = {"format": "path", "prefixItems": [{}] * MAX_NODES}
    deep = {"format": "path"}
    for _ in range(10 * MAX_DEPTH):
        deep = {"not": deep}
    for schema in (wide, deep):
        assert compilable(schema, lambda found: check_size(found, "")) is schema
