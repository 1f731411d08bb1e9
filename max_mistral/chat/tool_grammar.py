"""What a model may write when it calls tools, as a grammar of MAX's engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from max._xgrammar.structural_tag import (
    AnyTokensFormat,
    ConstStringFormat,
    Format,
    JSONSchemaFormat,
    OptionalFormat,
    OrFormat,
    PlusFormat,
    RegexFormat,
    SequenceFormat,
    StarFormat,
    StructuralTag,
    TokenFormat,
)
from max.pipelines.lib.pipeline_variants.structured_output_backend import (
    STRUCTURED_OUTPUT_MAX_WHITESPACE_RUN as MAX_WHITESPACE,
)

from .call_reader import ARGS_MARK, ID_MARK, MARK
from .reasoning import END, START
from .vocabulary import special_tokens

HELD = "held"
"""The key of a function without ``strict`` whose parameters count all the same."""
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    delegate: Any,
    *,
    mark: str = MARK,
    close: str = "",
    single: bool = False,
    answer_schema: dict[str, Any] | bool | None = None,
) -> str:
    """Returns a grammar for calls in the form that a vocabulary's version has.

    Args:
        tools: OpenAI tools; the parameters of those with ``strict`` are enforced, of
            those with :data:`HELD` as far as a grammar can, and the others' arguments
            are any JSON object.
        delegate: The Hugging Face tokenizer.
        mark: What begins a call.
        close: What ends one, else "".
        single: Allow one call only.
        answer_schema: Allow JSON of this schema instead of calls.

    Returns:
        The JSON of a ``StructuralTag``.
    """
    special = special_tokens(delegate)
    if close:
        calls = _tagged(tools, special, mark, close, single)
    elif ARGS_MARK in special:
        calls = _named(tools, special, mark, single)
    else:
        calls = _listed(tools, special, mark, single)
    if answer_schema is not None:
        calls = OrFormat(elements=[calls, json_format(answer_schema)])
    return tag(calls, special)


def answer_grammar(schema: dict[str, Any] | bool, delegate: Any) -> str:
    """Returns a grammar for JSON of a schema, after thinking where there is any."""
    return tag(json_format(schema), special_tokens(delegate))


def tag(answer: Format, special: Mapping[str, int]) -> str:
    """Returns the structural tag of an answer that thinking may precede."""
    if START in special:
        no_thoughts: list[int | str] = [t for t in (START, END, MARK) if t in special]
        thinking: list[Format] = [
            TokenFormat(token=START),
            AnyTokensFormat(exclude_tokens=no_thoughts),
            TokenFormat(token=END),
        ]
        think = OptionalFormat(content=SequenceFormat(elements=thinking))
        answer = SequenceFormat(elements=[think, answer])
    return StructuralTag(format=answer).model_dump_json()


def json_format(
    schema: dict[str, Any] | bool, is_object: bool = False, *, strict: bool = True
) -> Format:
    """Returns the format of JSON of a schema, with a model's natural white space.

    Args:
        schema: The JSON schema.
        is_object: Whether its values must be objects.
        strict: Whether what a grammar cannot enforce is refused, or left out.
    """
    return JSONSchemaFormat(
        json_schema=schema,
        any_whitespace=True,
        max_whitespace_cnt=MAX_WHITESPACE,
        require_object_root=is_object,
        reject_unsupported=strict,
    )


def _literal(text: str, special: Mapping[str, int]) -> Format:
    # A control token's text can be written in letters too, and then is none.
    if text in special:
        return TokenFormat(token=text)
    return ConstStringFormat(value=text)


def _arguments(function: Mapping[str, Any]) -> Format:
    schema, strict = function.get("parameters"), bool(function.get("strict"))
    if not schema or not (strict or function.get(HELD)):
        return json_format(ANY_OBJECT, is_object=True)
    return json_format(schema, is_object=True, strict=strict)


def _one_of(formats: list[Format]) -> Format:
    return OrFormat(elements=formats) if len(formats) > 1 else formats[0]


def _object(tool: Mapping[str, Any]) -> Format:
    function = tool["function"]
    name = json.dumps(function["name"], ensure_ascii=False)
    return SequenceFormat(
        elements=[
            ConstStringFormat(value=f'{{"name": {name}, "arguments": '),
            _arguments(function),
            ConstStringFormat(value="}"),
        ]
    )


def _listed(
    tools: Sequence[Mapping[str, Any]],
    special: Mapping[str, int],
    mark: str,
    single: bool,
) -> Format:
    """The form before v11: one marker, then a list of objects."""
    one = _one_of([_object(tool) for tool in tools])
    elements = [_literal(mark, special), RegexFormat(pattern=r" ?\["), one]
    if not single:
        more = SequenceFormat(elements=[ConstStringFormat(value=", "), one])
        elements.append(StarFormat(content=more))
    return SequenceFormat(elements=[*elements, ConstStringFormat(value="]")])


def _named(
    tools: Sequence[Mapping[str, Any]],
    special: Mapping[str, int],
    mark: str,
    single: bool,
) -> Format:
    """The form from v11 on: each call has the marker, its name and arguments."""
    call_id: list[Format] = []
    if ID_MARK in special:  # v11 writes an id, v13 has the token and does not
        written: list[Format] = [
            TokenFormat(token=ID_MARK),
            RegexFormat(pattern="[a-zA-Z0-9]{9}"),
        ]
        call_id = [OptionalFormat(content=SequenceFormat(elements=written))]
    one = _one_of(
        [
            SequenceFormat(
                elements=[
                    _literal(mark, special),
                    ConstStringFormat(value=tool["function"]["name"]),
                    *call_id,
                    TokenFormat(token=ARGS_MARK),
                    _arguments(tool["function"]),
                ]
            )
            for tool in tools
        ]
    )
    return one if single else PlusFormat(content=one)


def _tagged(
    tools: Sequence[Mapping[str, Any]],
    special: Mapping[str, int],
    mark: str,
    close: str,
    single: bool,
) -> Format:
    """The form of fine-tunes: an object between two tags for each call."""
    one = SequenceFormat(
        elements=[
            _literal(mark, special),
            RegexFormat(pattern=r"\n?"),
            _one_of([_object(tool) for tool in tools]),
            RegexFormat(pattern=r"\n?"),
            _literal(close, special),
        ]
    )
    if single:
        return one
    more = SequenceFormat(elements=[RegexFormat(pattern=r"\n?"), one])
    return SequenceFormat(elements=[one, StarFormat(content=more)])
