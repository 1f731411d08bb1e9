"""JSON schemas of requests, checked before they reach the model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

from max import _xgrammar as xgrammar
from max._xgrammar.structural_tag import Format
from max.pipelines.context.exceptions import InputError

from ..errors import shown
from ..unicode import is_unicode
from .patterns import repeated
from .schema_forms import patterns, target, wrong_pattern
from .tool_grammar import json_format

# The worker compiles a grammar between two decode steps of everybody's answers:
# a schema within these limits takes it seconds at most, one beyond them minutes.
# Time grows with the square of most: with a vocabulary of 131,072 tokens, in
# seconds of a CPU, 128 properties of one object take 3, 250 in objects of 5
# properties 3 and 500 11; 5,000 choices take 0.2, 65,536 characters of them 1.
MAX_CHARACTERS = 65_536
MAX_CHARACTERS_TOGETHER = 4 * MAX_CHARACTERS  # of all tools
MAX_DEPTH = 64
MAX_CHOICES = 5_000
MAX_NODES = 2_000
MAX_NODES_TOGETHER = 8_000  # of all tools
MAX_PROPERTIES = 512  # in all
MAX_PAIRS = 128**2  # of properties of one object, over all objects
MAX_COUNT = 10_000  # of characters and items, over all parts
_COUNTS = (
    *("minLength", "maxLength", "minItems", "maxItems"),
    *("minProperties", "maxProperties"),
)
# Where the compiler found an error: in its source, and in a pattern that is not the
# client's any more.
_WHERE = re.compile(r"^\[[\d:]+\] \S+:\d+: |(?<=Regex parsing error) at position \d+")


def check_schema(
    schema: dict[str, Any] | bool, what: str, is_object: bool = False
) -> None:
    """Checks that a schema compiles in reasonable time and allows some value.

    Args:
        schema: The JSON schema.
        what: What it is of, for the message.
        is_object: Whether its values must be objects.

    Raises:
        InputError: It is too large, no schema that can be enforced, or one that
            only an endless value would fit.
    """
    check_size(schema, what)
    if not _has_finite_value(schema):
        raise InputError(
            f"The JSON schema of {what} refers to itself without an end: only an "
            "endless value would fit it. Make a property on the way optional."
        )
    pattern = wrong_pattern(schema)
    if pattern is not None:
        raise InputError(
            f"The JSON schema of {what} has the pattern {shown(pattern)}, whose ^ or $ "
            "cannot be enforced in its place; give ^ at the beginning and $ at the "
            "end, of the pattern or of an alternative, without counts around them, and "
            "both of most alternatives."
        )
    try:
        _compile(json_format(schema, is_object))
    except RuntimeError as error:
        reason = _WHERE.sub("", str(error)).strip()
        message = f"The JSON schema of {what} cannot be used: {reason}"
        raise InputError(message) from None


def can_hold(schema: dict[str, Any]) -> bool:
    """Whether a grammar can hold objects to a schema, or to some of it."""
    try:
        check_size(schema, "")
    except InputError:
        return False
    if wrong_pattern(schema) is not None or not _has_finite_value(schema):
        return False
    try:
        _compile(json_format(schema, is_object=True, strict=False))
    except RuntimeError:
        return False
    return True


def _compile(answer: Format) -> None:
    _compiler().compile_structural_tag(xgrammar.StructuralTag(format=answer))


@lru_cache(maxsize=1)
def _compiler() -> Any:
    """A compiler that says what is wrong with a schema, for a vocabulary of bytes."""
    info = xgrammar.TokenizerInfo(
        [bytes([byte]) for byte in range(256)] + [b"</s>"],
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=257,
        stop_token_ids=[256],
    )
    return xgrammar.GrammarCompiler(info, max_memory_bytes=1 << 24)


def check_size(schema: object, what: str) -> None:
    """Checks that a schema is of a size that compiles in reasonable time.

    Raises:
        InputError: It is not.
    """
    nodes = properties = pairs = counts = 0
    for node, depth in _walk(schema):
        nodes += 1
        if depth > MAX_DEPTH:
            _refuse(what, f"more than {MAX_DEPTH} levels", f"{MAX_DEPTH}")
        if nodes > MAX_NODES:
            _refuse(what, f"more than {MAX_NODES:,} parts", f"{MAX_NODES:,}")
        if not isinstance(node, dict):
            continue
        choices = node.get("enum")
        if isinstance(choices, list) and len(choices) > MAX_CHOICES:
            _refuse(what, f"{len(choices)} choices in one enum", str(MAX_CHOICES))
        named = node.get("properties")
        if isinstance(named, dict):
            properties += len(named)
            pairs += len(named) ** 2
        counts += max(_counts(node), default=0)
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)  # recurses
    except ValueError:
        message = f"The JSON schema of {what} has a number that is not finite."
        raise InputError(message) from None
    size = len(text)
    if size > MAX_CHARACTERS:
        _refuse(what, f"{size:,} characters", f"{MAX_CHARACTERS:,}")
    if not is_unicode(text):
        raise InputError(
            f"The JSON schema of {what} has an invalid Unicode character (a lone "
            "surrogate such as \\ud800); leave it out."
        )
    if pairs > MAX_PAIRS or properties > MAX_PROPERTIES:
        most = f"128 in one object, or {MAX_PROPERTIES} in small ones,"
        _refuse(what, f"{properties} properties", most)
    if counts > MAX_COUNT:
        found = f"lengths (maxLength, maxItems or a pattern's) of {counts:,} together"
        _refuse(what, found, f"{MAX_COUNT:,}")


def check_together(schemas: Collection[object]) -> None:
    """Checks that the schemas of tools are not too many for one grammar.

    Raises:
        InputError: They are.
    """
    nodes = properties = choices = counts = characters = 0
    for schema in schemas:
        characters += len(json.dumps(schema, ensure_ascii=False))
        for node, _ in _walk(schema):
            nodes += 1
            if isinstance(node, dict):
                properties += _length(node.get("properties"), dict)
                choices += _length(node.get("enum"), list)
                counts += max(_counts(node), default=0)
    for found, what, most in (
        (nodes, "parts", MAX_NODES_TOGETHER),
        (properties, "properties", MAX_PROPERTIES),
        (choices, "choices in enums", MAX_CHOICES),
        (counts, "characters and items (maxLength, maxItems, patterns)", MAX_COUNT),
        (characters, "characters", MAX_CHARACTERS_TOGETHER),
    ):
        if found > most:
            raise InputError(
                f"The {len(schemas)} strict tools have {found:,} {what} together; at "
                f"most {most:,} can be enforced: leave strict out of some."
            )


def _length(found: object, kind: type[dict[str, Any]] | type[list[Any]]) -> int:
    return len(found) if isinstance(found, kind) else 0


def _counts(node: dict[str, Any]) -> Iterator[int]:
    """Yields how often parts of a value may or must be repeated."""
    for key in _COUNTS:
        value = node.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, int | float):
            yield int(min(value, MAX_COUNT + 1))
    yield sum(map(repeated, patterns(node)))


def _refuse(what: str, found: str, most: str) -> None:
    raise InputError(
        f"The JSON schema of {what} has {found}; at most {most} can be used."
    )


def _walk(schema: object) -> Iterator[tuple[object, int]]:
    """Yields every object and list in a schema, with its depth in the JSON."""
    stack: list[tuple[object, int]] = [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        if isinstance(node, dict | list) and depth <= MAX_DEPTH:
            stack.extend(
                (child, depth + 1)
                for child in (node.values() if isinstance(node, dict) else node)
                if isinstance(child, dict | list)
            )


def _has_finite_value(schema: dict[str, Any] | bool) -> bool:
    try:
        return _Finite(schema).has_value(schema, ())
    except RecursionError:  # references into references, hundreds deep
        return False


def _listed(schema: dict[str, Any], key: str) -> list[Any]:
    """Returns a list in a schema; the grammar's compiler refuses what is none."""
    found = schema.get(key)
    return found if isinstance(found, list) else []


class _Finite:
    """Says whether some value of finite size fits a schema that may be recursive."""

    def __init__(self, root: dict[str, Any] | bool) -> None:
        self._root = root
        self._steps = 0

    def has_value(self, schema: Any, inside: tuple[str, ...]) -> bool:
        """``inside`` are the references that are being followed."""
        self._steps += 1
        if not isinstance(schema, dict) or self._steps > 100_000:
            return schema is not False
        return all(self._parts(schema, inside))

    def _parts(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Iterator[bool]:
        """Yields, of each part that must have a value, whether it can."""
        reference = schema.get("$ref")
        if isinstance(reference, str):
            # Through itself a reference yields only what is endless.
            yield reference not in inside and self.has_value(
                target(self._root, reference), (*inside, reference)
            )
        for key in ("anyOf", "oneOf"):
            choices = schema.get(key)
            if isinstance(choices, list):
                yield any(self.has_value(choice, inside) for choice in choices)
        for part in _listed(schema, "allOf"):
            yield self.has_value(part, inside)
        properties = schema.get("properties")
        if schema.get("type", "object") == "object" and isinstance(properties, dict):
            for name in _listed(schema, "required"):
                if isinstance(name, str):
                    yield self.has_value(properties.get(name, True), inside)
        least = schema.get("minItems")
        some = isinstance(least, int | float) and least > 0
        if schema.get("type") == "array" and some:
            yield self.has_value(schema.get("items", True), inside)
