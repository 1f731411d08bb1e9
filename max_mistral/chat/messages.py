"""A chat's messages: their order, the ids of calls, and tools told in words."""

from __future__ import annotations

import hashlib
import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from max.pipelines.context.exceptions import InputError

from .events import is_call_id

_BASE62 = string.digits + string.ascii_letters

# The roles that can follow one, as mistral-common checks them.
_FOLLOWERS = {
    "nothing": ("system", "user", "assistant"),
    "nothing, as the only message,": ("system", "user"),
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool", "user"),
}

_TOOLS_IN_WORDS = """\
You can call tools. Each line between the tools tags describes one as JSON:
<tools>
{tools}
</tools>
To call a tool, answer with a JSON object of its name and arguments between tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def check_order(messages: Sequence[Any], system_anywhere: bool = False) -> None:
    """Checks that roles follow each other as Mistral's API has them.

    Args:
        messages: MAX's ``TextGenerationRequestMessage``, in order.
        system_anywhere: Whether the system may speak after an answer or a result, as
            in ChatML.

    Raises:
        InputError: They do not, or a tool result answers no call before it.
    """
    before = "nothing" if len(messages) > 1 else "nothing, as the only message,"
    open_calls: Counter[str | None] = Counter()
    for index, message in enumerate(messages):
        role = str(message.role)
        anywhere = role == "system" and system_anywhere
        if role not in _FOLLOWERS[before] and not anywhere:
            *others, last = _FOLLOWERS[before]
            raise InputError(
                f"messages[{index}] has role {role!r} after {before}, where "
                f"{', '.join(others)} or {last} can stand."
            )
        before = role
        if role != "tool":
            open_calls = Counter(call.get("id") for call in message.tool_calls or [])
            continue
        if not open_calls[message.tool_call_id]:
            raise InputError(
                f"messages[{index}] is the result of tool call "
                f"{message.tool_call_id!r}, which the assistant's message before it "
                "does not make or which has its result already."
            )
        open_calls[message.tool_call_id] -= 1


def with_mistral_ids(messages: Sequence[Any]) -> list[Any]:
    """Returns messages whose tool call ids are 9 alphanumerics.

    Mistral's prompts take no others. An id of that form stays; another becomes
    one made from its text, the same in each turn, so that a cached prefix holds.
    """
    ids = MistralIds()
    return [_renamed(message, ids) for message in messages]


class MistralIds:
    """The ids of 9 alphanumerics that stand for those of a chat's tool calls."""

    def __init__(self) -> None:
        self._ours: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, call_id: object) -> str:
        """Returns the one that stands for ``call_id``, which the client has."""
        text = str(call_id)
        if text not in self._ours:
            short, salt = text, ""
            while not is_call_id(short) or short in self._taken:
                hashed = hashlib.sha256((text + salt).encode("utf-8", "replace"))
                digest = int.from_bytes(hashed.digest())
                short = "".join(_BASE62[digest // 62**i % 62] for i in range(9))
                salt += "'"  # two ids that become the same are still two
            self._ours[text] = short
            self._taken.add(short)
        return self._ours[text]


def _renamed(message: Any, ids: MistralIds) -> Any:
    changes: dict[str, Any] = {}
    if message.tool_calls:
        changes["tool_calls"] = [
            {**call, "id": ids.of(call.get("id"))} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        changes["tool_call_id"] = ids.of(message.tool_call_id)
    return message.model_copy(update=changes) if changes else message


def as_trained(tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns tools with the keys, and in the order, that models were trained on.

    Templates write a function's keys as they come. MAX puts the description first,
    null or not, and adds ``strict``. Source: ``Function`` of mistral-common.
    """
    return [
        {
            **tool,
            "function": {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description") or "",
                "parameters": tool["function"].get("parameters") or {},
            },
        }
        for tool in tools
    ]


def in_words(
    messages: Sequence[Any],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    has_system: bool = True,
) -> list[Any]:
    """Returns messages that tell tools, calls and results in the text itself.

    For a chat template that knows none of them. The form is what Hermes and
    models after it were trained on; the tools join the system prompt, or the first
    message where there is none.

    Args:
        messages: MAX's ``TextGenerationRequestMessage``, in order.
        tools: The functions that may be called.
        has_system: Whether the template takes a system prompt.
    """
    told: list[Any] = []
    changes: dict[str, Any]
    for message in messages:
        role = str(message.role)
        text = message.flatten_content()["content"]
        if role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
            if told and told[-1].role == "user" and told[-1].tool_call_id:
                text = f"{told[-1].content}\n{text}"
                told.pop()
            # tool_call_id marks the message as ours until the loop is done.
            changes = {"role": "user", "content": text}
        elif message.tool_calls:
            calls = [_call_in_words(call) for call in message.tool_calls]
            text = "\n".join([text, *calls] if text else calls)
            changes = {"content": text, "tool_calls": None}
        else:
            changes = {"content": text}
        told.append(message.model_copy(update=changes))
    told = [m.model_copy(update={"tool_call_id": None}) for m in told]
    if not tools:
        return told
    lines = (json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    words = _TOOLS_IN_WORDS.format(tools="\n".join(lines))
    if str(told[0].role) == "system":
        words = f"{told.pop(0).content}\n\n{words}"
    elif not has_system:
        words = f"{words}\n\n{told[0].content}"
        return [told[0].model_copy(update={"content": words}), *told[1:]]
    system = told[0].model_copy(update={"role": "system", "content": words})
    return [system, *told]


def _call_in_words(call: Mapping[str, Any]) -> str:
    function = call["function"]
    said = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"
