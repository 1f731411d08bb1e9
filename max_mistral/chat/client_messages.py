"""A chat's messages as a client sends them, before MAX 26.7 reads them.

MAX drops parts of a message that it does not know, and fails at arguments of tool
calls that Python cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from max.pipelines.context.exceptions import InputError

# MAX compares the ids of a message's calls with those of their results, each with
# each.
MOST_CALLS = 1024

# Image and video are refused by MAX, or by the tokenizer, in words of their own.
_PARTS = ("text", "image_url", "video_url")
_DROPPED = ("function_call", "audio", "refusal")


def read_messages(
    given: Sequence[Mapping[str, Any]], messages: Sequence[dict[str, Any]]
) -> None:
    """Checks a chat's messages; puts thinking where MAX reads it.

    Args:
        given: The messages in the request's JSON.
        messages: The same as MAX's pydantic model has them, which lack what it
            drops. Thinking in ``content``, as Mistral's own API has it, becomes
            their ``reasoning_content``.

    Raises:
        InputError: (a ``ValueError``) if a message has something that would be
            dropped, or a tool call's arguments cannot be read.
    """
    for index, (said, message) in enumerate(zip(given, messages, strict=True)):
        where = f"messages[{index}]"
        for field in _DROPPED:
            if said.get(field) is not None:
                raise InputError(f"{where}.{field} is not supported; leave it out.")
        _check_calls(said.get("tool_calls") or [], where)
        parts = said.get("content")
        if not isinstance(parts, list):
            continue
        if said["role"] == "assistant" and parts and parts[0]["type"] == "thinking":
            thinking, parts = parts[0], parts[1:]
            if said.get("reasoning_content") or said.get("reasoning"):
                raise InputError(f"{where} has its thinking twice; leave one out.")
            message["reasoning_content"] = _thinking(thinking, where)
            message["content"] = message["content"][1:] or ""
        for part in parts:
            if part["type"] not in _PARTS:
                raise InputError(
                    f"{where} has a part of type {part['type']!r}; give parts of type "
                    "'text', and thinking first in an assistant's message."
                )


def _check_calls(calls: Sequence[Mapping[str, Any]], where: str) -> None:
    if len(calls) > MOST_CALLS:
        raise InputError(
            f"{where} has {len(calls)} tool calls; at most {MOST_CALLS} can be read."
        )
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        if arguments == "":
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
            f"{where}.tool_calls[{index}] has arguments that are no JSON: {reason}"
        )


def _thinking(part: Mapping[str, Any], where: str) -> str:
    """Returns the text of a part ``{"type": "thinking", "thinking": ...}``."""
    thinking = part.get("thinking")
    if isinstance(thinking, list):
        texts = [each.get("text") for each in thinking if isinstance(each, Mapping)]
        if len(texts) == len(thinking) and all(isinstance(t, str) for t in texts):
            thinking = "".join(map(str, texts))
    if not isinstance(thinking, str) or part.get("closed", True) is not True:
        raise InputError(
            f"{where} has thinking that is not a text, or a list of text parts, that "
            "is closed."
        )
    return thinking
