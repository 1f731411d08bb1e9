"""A chat's messages as mistral-common takes them, of a request as MAX has read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from max.pipelines.modeling.types import TextGenerationRequestMessage
from mistral_common.tokens.tokenizers.base import TokenizerVersion

# mistral-common reads and writes a result further down than we do, in calls and in
# JSON, but by fewer levels than these.
_MARGIN = 100


def as_sent(
    messages: Sequence[TextGenerationRequestMessage],
    contents: Sequence[list[dict[str, Any]] | None] | None,
    version: TokenizerVersion,
    *,
    thinks: bool,
) -> list[dict[str, Any]]:
    """Returns the messages as a client sent them, with what MAX took out.

    But for answers in which nothing is left that a prompt has a place for: a server
    gives an empty one where a stop string came first, and the next turn has it.

    Args:
        messages: As MAX's routes make them of a request.
        contents: Of each the parts of its content, if they are not as MAX left them.
        version: mistral-common's, that takes them.
        thinks: Whether an answer may have thinking. If not, it is left out: the chat
            may have been with another model before.
    """
    found = []
    names: dict[str | None, str] = {}
    for message, parts in zip(
        messages, contents or [None] * len(messages), strict=True
    ):
        each: dict[str, Any] = {"role": message.role}
        if parts is not None:
            each["content"] = parts
        elif isinstance(message.content, str):
            each["content"] = message.content
        else:
            each["content"] = [part.model_dump() for part in message.content]
        if message.tool_calls:
            # Before v7 a message has either, as the chat templates of then.
            if version < TokenizerVersion.v7 or not each["content"]:
                each["content"] = None
            each["tool_calls"] = [_call(call) for call in message.tool_calls]
            for call in message.tool_calls:
                names[call.get("id")] = call["function"]["name"]
        if message.role == "tool":
            each["tool_call_id"] = message.tool_call_id
            each["name"] = names.get(message.tool_call_id)
            if version < TokenizerVersion.v7:
                each["content"] = _as_json(each["content"])
        if message.reasoning_content:
            each["reasoning_content"] = message.reasoning_content
        if message.role == "assistant" and not thinks:
            each = _without_thinking(each)
        found.append(each)
    # The last is what it is: a question, or an answer to be continued.
    return [each for each in found[:-1] if not _is_empty(each)] + found[-1:]


def _without_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """Returns an answer without its thinking."""
    message.pop("reasoning_content", None)
    content = message["content"]
    if isinstance(content, list):
        left = [part for part in content if part["type"] != "thinking"]
        message["content"] = left or (None if "tool_calls" in message else "")
    return message


def _is_empty(message: dict[str, Any]) -> bool:
    """Whether an answer has neither text nor calls nor thinking."""
    if message["role"] != "assistant":
        return False
    content = message.get("content")
    if isinstance(content, list):
        content = any(part["type"] != "text" or part["text"] for part in content)
    return not (content or message.get("tool_calls") or "reasoning_content" in message)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    # MAX parses them, to write them into a template.
    arguments = function.get("arguments", {})
    function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function}


def _as_json(content: Any) -> Any:
    """Returns a tool's result as mistral-common can read and write it.

    Before v7 it becomes a part of JSON: itself, if it is JSON, else a string. What is
    JSON, but has too many digits or levels for Python, is a string too.
    """
    if not isinstance(content, str):
        texts = [part.get("text") for part in content]
        if None in texts:
            return content  # which mistral-common refuses
        content = "\n\n".join(filter(None, texts))  # as it joins them
    try:
        json.loads("[" * _MARGIN + content + "]" * _MARGIN)
        return json.dumps(json.loads(content), ensure_ascii=False)
    except json.JSONDecodeError:
        return content
    except (ValueError, RecursionError):
        return json.dumps(content, ensure_ascii=False)
