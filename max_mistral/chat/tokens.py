"""What a tokenizer does for tools, thinking and JSON, beside making tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from max.pipelines.context import TextContext
from max.pipelines.context.exceptions import InputError
from max.pipelines.lib import TextTokenizer

from . import tool_parser
from .call_reader import ARGS_MARK, ID_MARK, MARK
from .messages import as_trained, check_order, in_words, with_mistral_ids
from .reasoning import END, START
from .schema_forms import compilable
from .schemas import can_hold, check_schema, check_size, check_together
from .tool_grammar import ANY_OBJECT, answer_grammar
from .vocabulary import special_tokens

_reads_calls: ContextVar[bool] = ContextVar("reads_calls", default=False)

_CALL_TOKENS = (
    MARK,
    ID_MARK,
    ARGS_MARK,
    tool_parser.TagToolParser.CALL_BEGIN,
    tool_parser.TagToolParser.CALL_CLOSE,
)


class ChatTokens(TextTokenizer):
    """A text tokenizer that knows tool calls, thinking and JSON schemas.

    A subclass's constructor calls ``set_up_chat`` at its end.

    Attributes:
        reasoning_start_token_id: The id of ``[THINK]``, -1 where there is none.
        reasoning_end_token_id: The id of ``[/THINK]``, -1 where there is none.
    """

    reasoning_start_token_id: int
    reasoning_end_token_id: int

    def set_up_chat(self, pipeline_config: Any) -> None:
        """Looks at the vocabulary and settles the config."""
        special = special_tokens(self.delegate)
        # MAX's own sign for "none": a GPU pipeline asks every tokenizer.
        self.reasoning_start_token_id = special.get(START, -1)
        self.reasoning_end_token_id = special.get(END, -1)
        self._skipped = {
            index for text, index in special.items() if text not in _CALL_TOKENS
        }
        if pipeline_config is not None:
            settle_config(pipeline_config, special)

    @property
    def skipped_special_token_ids(self) -> set[int] | None:
        """The ids that decoding leaves out; None for all control tokens.

        MAX asks for each answer, right after its ``new_context``: where tools are
        offered, the tool parser needs the markers; elsewhere none may be seen.
        """
        return self._skipped if _reads_calls.get() else None

    async def new_context(self, request: Any) -> TextContext:
        """Returns a request's context.

        Raises:
            InputError: Its messages or its JSON schemas are no good.
        """
        check_order(
            request.messages,
            system_anywhere="[INST]" not in str(self.delegate.chat_template),
        )
        request = replace(request, messages=with_mistral_ids(request.messages))
        if request.response_format is not None:
            checked = await asyncio.to_thread(check_schemas, request)
            request = replace(
                request, response_format=after_thinking(checked, self.delegate)
            )
        _reads_calls.set(bool(request.tools))
        return await super().new_context(request)

    def apply_chat_template(
        self, messages: list[Any], tools: list[Any] | None, **options: Any
    ) -> str:
        """Renders messages and tools, in words where the template has no tools.

        Raises:
            InputError: There are tools, and the template has none.
        """
        tools = as_trained(tools) if tools else None
        template = str(self.delegate.chat_template)
        with_calls = any(m.tool_calls or str(m.role) == "tool" for m in messages)
        if (tools or with_calls) and "tools" not in template:
            if MARK in special_tokens(self.delegate):
                raise InputError(
                    "This checkpoint's chat template has no tools; start the server "
                    "with one that has, by --chat-template."
                )
            # The first templates of 7B take turns of user and assistant alone.
            has_system = "system" in template or "raise_exception" not in template
            messages, tools = in_words(messages, tools, has_system=has_system), None
        return super().apply_chat_template(messages, tools, **options)


def settle_config(config: Any, special: Mapping[str, int]) -> None:
    """Sets what MAX 26.7 lets no architecture set, before anything reads it.

    MAX refuses ``--enable-structured-output`` on a CPU, where its sampler masks
    as well as on a GPU; and a parser is chosen before there is a vocabulary. The
    config is frozen, and is pickled to the worker as it is after this.
    """
    sampling = config.sampling.model_copy(update={"enable_structured_output": True})
    object.__setattr__(config, "sampling", sampling)
    if config.runtime.tool_parser == tool_parser.NAME and MARK not in special:
        update = {"tool_parser": tool_parser.TAGS_NAME}
        object.__setattr__(config, "runtime", config.runtime.model_copy(update=update))


def check_schemas(request: Any) -> Any:
    """Checks every JSON schema that a request's grammar is made of.

    Returns:
        The request's response format, in which tools without ``strict`` take any object
        where a grammar cannot hold to their schema.

    Raises:
        InputError: Another schema is no good.
    """
    response_format = request.response_format
    if response_format.json_schema is not None:
        schema = _form(response_format.json_schema)
        check_schema(schema, "response_format")
        response_format = replace(response_format, json_schema=schema)
    if not response_format.grammar:
        return response_format
    of_tools = {
        tool["function"]["name"]: _form(tool["function"]["parameters"])
        for tool in request.tools or []
        if tool["function"].get("strict")
    }
    check_together(of_tools.values())
    for name, schema in of_tools.items():
        check_schema(schema, f"tool {name!r}", is_object=True)
    grammar = json.loads(response_format.grammar)
    held = []
    for node in _schemas(grammar):
        schema = node["json_schema"] = _form(node["json_schema"])
        if not node["reject_unsupported"]:
            held.append(node)
            if not can_hold(schema):
                node["json_schema"] = ANY_OBJECT
        elif schema not in of_tools.values():
            check_schema(schema, "response_format")
    try:
        # Their forms are longer than what the client has sent.
        check_together([node["json_schema"] for node in held])
    except InputError:
        for node in held:
            node["json_schema"] = ANY_OBJECT
    return replace(response_format, grammar=json.dumps(grammar))


def _form(schema: Any) -> Any:
    return compilable(schema, lambda found: check_size(found, ""))


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Yields the parts of a structural tag that have a schema."""
    if isinstance(node, dict) and node.get("type") == "json_schema":
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _schemas(inner)


def after_thinking(response_format: Any, delegate: Any) -> Any:
    """Returns a response format that lets a model think before its JSON."""
    schema = response_format.json_schema
    thinks = START in special_tokens(delegate)
    if schema is None or response_format.grammar or not thinks:
        return response_format
    return replace(
        response_format,
        type="grammar",
        json_schema=None,
        grammar=answer_grammar(schema, delegate),
    )
