"""Schemas that pydantic writes, and the grammar's compiler takes in another form."""

import copy
import json
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import UUID4, BaseModel, Field, FilePath, SecretStr

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
    assert said.count('"const"') + said.count('\\"const\\"') >= 4


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


@pytest.mark.parametrize(
    "choice",
    [
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": 3},
        {"$ref": "#/$defs/list/0"},
        {"$ref": "#/$defs/a", "minLength": 3},
        {"type": "string"},
        True,
    ],
)
def test_other_choices_stay(choice):
    schema = {"$defs": {"a": {"type": "string"}, "list": [1]}, "oneOf": [choice]}
    assert form(schema) == schema


def test_a_reference_to_itself_is_followed_once():
    schema = {"oneOf": [{"$ref": "#/$defs/a"}], "$defs": {}}
    schema["$defs"]["a"] = {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}
    assert form(schema)["oneOf"] == [schema["$defs"]["a"]]


def test_what_would_be_too_large_stays():
    large = {"prefixItems": [True] * (MAX_NODES // 4) + [{}] * (MAX_NODES // 4)}
    schema = {"$defs": {"a": large}, "oneOf": [{"$ref": "#/$defs/a"}] * 8}
    assert form(schema) == schema
    deep = {}
    for _ in range(10 * MAX_DEPTH):
        deep = {"not": deep}
    assert compilable(deep, lambda found: check_size(found, "")) is deep
