"""JSON schemas in forms that mean the same and that the grammar's compiler takes.

Pydantic writes both: a union of models is ``oneOf`` references, whose targets the
compiler does not look at to tell them apart; and it has formats of its own, such as
``uuid4`` and ``path``, which a validator takes for notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from max.pipelines.context.exceptions import InputError

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
# What may stand beside a reference that only says more of it.
_NOTES = {"$ref", "title", "description"}


def compilable(schema: Schema, check: Callable[[Schema], None]) -> Schema:
    """Returns a schema in a form that more likely compiles, if it is not too large.

    Args:
        schema: The client's, which is left as it is.
        check: Raises ``InputError`` if a schema is too large.
    """
    found = schema
    try:
        check(schema)
        found = _each(schema, _with_known_format)
        inlined = _each(found, lambda node: _with_targets(node, found))
        check(inlined)
    except InputError:
        return found
    return inlined


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


def _with_targets(node: dict[str, Any], root: Schema) -> dict[str, Any]:
    """A schema whose ``oneOf`` has what its references refer to, in their place."""
    choices = node.get("oneOf")
    if not isinstance(choices, list):
        return node
    return node | {"oneOf": [_target(choice, root) for choice in choices]}


def _target(choice: Schema, root: Schema) -> Schema:
    if not isinstance(choice, dict) or not choice.keys() <= _NOTES:
        return choice
    reference = choice.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return choice
    node: Any = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, dict) else choice
