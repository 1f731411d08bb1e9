"""A chat's messages as a client sends them, before MAX 26.7 reads them.

MAX drops fields and parts of a message that it does not know, and fails at arguments
of tool calls that Python cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from max.pipelines.context.exceptions import InputError

from ..errors import shown

# MAX compares the ids of a message's calls with those of their results, each with
# each, letter by letter.
MOST_CALLS = 1024
LONGEST_ID = 1024

contents: ContextVar[list[list[dict[str, Any]] | None] | None]
contents = ContextVar("contents", default=None)
"""Of each message of this task's request its ``content``, if it is a list of parts;
``None`` where no message has thinking among them."""

# What is in the parts of a message that no model here reads, for the message.
_MEDIA = {
    **{"image_url": "images", "video_url": "videos"},
    **{"input_audio": "audio", "audio_url": "audio"},
}
_DROPPED = ("function_call", "audio", "refusal")
# Labels and hints, and what clients send back of an answer: of OpenAI's, or of another
# server that the chat was with before. No prompt has a place for them.
IGNORED = (
    *("name", "id", "annotations", "parsed", "reasoning_details", "thinking_blocks"),
    *("provider_specific_fields", "extra_content", "cache_control", "citations"),
    *("executed_tools", "channel", "context", "end_turn", "weight"),
)
_KNOWN = {
    *("role", "content", "reasoning", "reasoning_content", "tool_calls"),
    *("tool_call_id", "prefix", *_DROPPED, *IGNORED),
}


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """Returns a request's JSON, for which a message's nulls are nothing.

    An answer has them, and clients send it back as it is in the next turn.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    return body | {"messages": [_without_nulls(each) for each in messages]}


def _without_nulls(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None}


def read_messages(
    given: Sequence[Mapping[str, Any]],
    messages: Sequence[dict[str, Any]],
    *,
    keeps_parts: bool,
    takes_unknown: bool = False,
) -> None:
    """Checks a chat's messages, and keeps their thinking, which MAX would drop.

    Args:
        given: The messages in the request's JSON, without nulls.
        messages: The same as MAX's pydantic model has them.
        keeps_parts: Whether the tokenizer takes a message's parts by
            :data:`contents`. If not, thinking is its ``reasoning_content``, where
            it comes first in an assistant's message.
        takes_unknown: Whether fields that are not known are ignored, as MAX's
            ``--allow-extra-request-fields`` has it.

    Raises:
        InputError: (a ``ValueError``) if a message has something that would be
            dropped, a tool call's arguments cannot be read, or there are more
            results than calls.
    """
    found: list[list[dict[str, Any]] | None] = []
    calls = results = 0
    for index, (said, message) in enumerate(zip(given, messages, strict=True)):
        where = f"messages[{index}]"
        _check_fields(said, where, takes_unknown)
        made = message.get("tool_calls") or []
        _read_calls(made, where)
        if message["role"] == "tool":
            _check_id(message.get("tool_call_id"), f"{where}.tool_call_id")
            results += 1
        else:
            calls, results = len(made), 0
        # Results without any call cost MAX nothing; check_order names them.
        if calls and results > calls:
            raise InputError(
                f"{where} is the result of one tool call more than the {calls} that "
                "the message before the results makes."
            )
        parts = said.get("content")
        if not isinstance(parts, list):
            found.append(None)
            continue
        parts = [_read_part(part, where) for part in parts]
        if not keeps_parts:
            parts = _take_first_thought(parts, message, where)
        found.append(parts)
    some = any(part["type"] == "thinking" for parts in found for part in parts or ())
    contents.set(found if some else None)


def _check_fields(said: Mapping[str, Any], where: str, takes_unknown: bool) -> None:
    for field in _DROPPED:
        if said.get(field):
            raise InputError(f"{where}.{field} is not supported; leave it out.")
    if said.get("prefix"):
        raise InputError(
            f"{where}.prefix is not read; to have an answer continued, give "
            'chat_template_kwargs: {"continue_final_message": true, '
            '"add_generation_prompt": false}.'
        )
    if not isinstance(said.get("reasoning") or "", str):
        raise InputError(f"{where}.reasoning must be a string.")
    unknown = next((field for field in said if field not in _KNOWN), None)
    if unknown is not None and not takes_unknown:
        raise InputError(
            f"{where} has a field {shown(unknown)} that is not known; leave it out, or "
            "start the server with --allow-extra-request-fields."
        )


def _read_calls(calls: Sequence[dict[str, Any]], where: str) -> None:
    if len(calls) > MOST_CALLS:
        raise InputError(
            f"{where} has {len(calls)} tool calls; at most {MOST_CALLS} can be read."
        )
    for index, call in enumerate(calls):
        _check_id(call.get("id"), f"{where}.tool_calls[{index}].id")
        arguments = call["function"]["arguments"]
        if not arguments.strip():
            call["function"]["arguments"] = ""
            continue
        try:
            json.loads(arguments)
        except RecursionError:
            reason = "too many levels"
        except ValueError as error:
            reason = str(error)
        else:
            continue
        raise InputError(
            f"{where}.tool_calls[{index}] has arguments that cannot be read as JSON: "
            f"{reason}"
        )


def _check_id(found: str | None, where: str) -> None:
    if found is not None and len(found) > LONGEST_ID:
        raise InputError(
            f"{where} has {len(found)} characters, but may have {LONGEST_ID}."
        )


def _read_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns a part of a message; the text of a thought may be text parts."""
    if part["type"] == "text":
        return dict(part)
    if part["type"] in _MEDIA:
        raise InputError(
            f"{where} has a part of type {shown(part['type'])}, but models read no "
            f"{_MEDIA[part['type']]} here; leave the part out."
        )
    if part["type"] != "thinking":
        raise InputError(
            f"{where} has a part of type {shown(part['type'])}; give parts of type "
            "'text' or 'thinking'."
        )
    thinking = part.get("thinking")
    if isinstance(thinking, list):
        texts = [each.get("text") for each in thinking if isinstance(each, Mapping)]
        if len(texts) == len(thinking) and all(isinstance(t, str) for t in texts):
            thinking = "".join(map(str, texts))
    closed = part.get("closed")
    if not isinstance(thinking, str) or not isinstance(closed, bool | None):
        raise InputError(
            f"{where} has thinking that is not a text, or a list of text parts."
        )
    return {"type": "thinking", "thinking": thinking, "closed": closed is not False}


def _take_first_thought(
    parts: list[dict[str, Any]], message: dict[str, Any], where: str
) -> list[dict[str, Any]]:
    """Makes a thought ``reasoning_content``; returns the other parts."""
    thoughts = [i for i, part in enumerate(parts) if part["type"] == "thinking"]
    if not thoughts:
        return parts
    if message["role"] != "assistant" or thoughts != [0] or not parts[0]["closed"]:
        raise InputError(
            f"{where} has a part of type 'thinking', which this model's chat template "
            "takes once, closed, and first in an assistant's message."
        )
    if message.get("reasoning_content") or message.get("reasoning"):
        raise InputError(f"{where} has its thinking twice; leave one out.")
    message["reasoning_content"] = parts[0]["thinking"]
    message["content"] = message["content"][1:]
    return parts[1:]
