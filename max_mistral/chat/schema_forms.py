"""JSON schemas in forms that mean the same and that the grammar's compiler takes.

Pydantic writes two of them: a union of models is ``oneOf`` references, which the
compiler does not follow to tell them apart; and it has formats of its own, such as
``uuid4`` and ``path``, which a validator takes for notes. A ``pattern`` is searched
for, and the compiler's is of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from max.pipelines.context.exceptions import InputError

from .patterns import searched

Schema = Any  # an object or a boolean, if the client's JSON is a schema

# Where a schema has others, by their names, one by one or as a list.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ONE = (
    *("items", "additionalItems", "additionalProperties", "propertyNames", "contains"),
    *("not", "if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
)
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
# Of JSON Schema 2020-12; all others are notes.
_FORMATS = {
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname"),
    *("idn-hostname", "ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference"),
    *("uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex"),
}
_UUIDS = {f"uuid{version}" for version in range(1, 9)}
# Choices of a union that are told apart; more stay as they are.
_MOST_CHOICES = 64


def compilable(schema: Schema, check: Callable[[Schema], None]) -> Schema:
    """Returns a schema in a form that more likely compiles, if it is not too large.

    Args:
        schema: The client's, which is left as it is.
        check: Raises ``InputError`` if a schema is too large.
    """
    try:
        check(schema)
    except InputError:
        return schema
    marks = _Marks(schema)
    for change in (_with_known_format, _with_searches, marks.with_any_of):
        schema = _each(schema, change)
    return schema


def wrong_pattern(schema: Schema) -> str | None:
    """Returns a pattern in a schema that no grammar can search for, if there is one.

    The size of the schema has been checked.
    """
    wrong: list[str] = []

    def look(node: dict[str, Any]) -> Schema:
        for pattern in patterns(node):
            try:
                searched(pattern)
            except ValueError:
                wrong.append(pattern)
        return node

    _each(schema, look)
    return wrong[0] if wrong else None


def target(root: Schema, reference: str) -> Schema:
    """Returns what a reference within a schema refers to; ``True`` for nothing."""
    node = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        node = node.get(key, True) if isinstance(node, dict) else True
    return node


def patterns(node: dict[str, Any]) -> list[str]:
    """Returns the patterns of a schema itself, not of those in it."""
    named = node.get("patternProperties")
    found = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


def _each(schema: Schema, change: Callable[[dict[str, Any]], Schema]) -> Schema:
    """Returns a copy of a schema with it and all those in it changed."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key in _NAMED:
        if isinstance(inner := schema.get(key), dict):
            found[key] = {name: _each(each, change) for name, each in inner.items()}
    for key in _ONE:
        if isinstance(inner := schema.get(key), dict):
            found[key] = _each(inner, change)
    for key in _SEVERAL:
        if isinstance(inner := schema.get(key), list):
            found[key] = [_each(each, change) for each in inner]
    return change(found)


def _with_known_format(node: dict[str, Any]) -> dict[str, Any]:
    found = node.get("format")
    if not isinstance(found, str) or found in _FORMATS:
        return node
    if found in _UUIDS:
        return node | {"format": "uuid"}
    return {key: value for key, value in node.items() if key != "format"}


def _with_searches(node: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema whose patterns are of whole texts, if all of its own can be."""
    try:
        whole = {pattern: searched(pattern) for pattern in patterns(node)}
    except ValueError:
        return node
    found = dict(node)
    if isinstance(pattern := node.get("pattern"), str):
        found["pattern"] = whole[pattern]
    if isinstance(named := node.get("patternProperties"), dict):
        renamed = {whole.get(name, name): each for name, each in named.items()}
        # Two names that become one stay: the compiler takes one pattern only.
        if len(renamed) == len(named):
            found["patternProperties"] = renamed
    return found


class _Marks:
    """By what the choices of unions in a schema can be told apart."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[str, tuple[str, dict[str, set[str]]]] = {}

    def with_any_of(self, node: dict[str, Any]) -> dict[str, Any]:
        """Returns a schema with ``anyOf`` for a ``oneOf`` of which two never fit."""
        choices = node.get("oneOf")
        if not isinstance(choices, list) or "anyOf" in node:
            return node
        if len(choices) > _MOST_CHOICES:
            return node
        marks = [self._marks(choice) for choice in choices]
        if not all(_differ(*pair) for pair in combinations(marks, 2)):
            return node
        without = ("oneOf", "discriminator")
        rest = {key: value for key, value in node.items() if key not in without}
        return rest | {"anyOf": choices}

    def _marks(self, choice: Schema) -> tuple[str, dict[str, set[str]]]:
        """A choice's type, and what texts its required properties may be."""
        reference = choice.get("$ref") if isinstance(choice, dict) else None
        if not isinstance(reference, str):
            return _marks_of(choice)
        if reference not in self._known:
            here = reference.startswith("#/")
            found = target(self._root, reference) if here else True
            self._known[reference] = _marks_of(found)
        return self._known[reference]


def _marks_of(schema: Schema) -> tuple[str, dict[str, set[str]]]:
    if not isinstance(schema, dict) or not isinstance(schema.get("type"), str):
        return "", {}
    texts: dict[str, set[str]] = {}
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and isinstance(properties, dict):
        for name, each in properties.items():
            if name in required and isinstance(each, dict):
                values = [each["const"]] if "const" in each else each.get("enum")
                if isinstance(values, list) and all(type(v) is str for v in values):
                    texts[name] = set(values)
    return schema["type"], texts


def _differ(
    one: tuple[str, dict[str, set[str]]], other: tuple[str, dict[str, set[str]]]
) -> bool:
    """Whether no value fits both of two choices."""
    kinds = {one[0], other[0]}
    if "" in kinds:
        return False
    if kinds == {"object"}:
        names = one[1].keys() & other[1].keys()
        return any(one[1][name].isdisjoint(other[1][name]) for name in names)
    return len(kinds) == 2 and kinds != {"integer", "number"}
