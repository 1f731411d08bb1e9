"""Which tools a request offers, and which of them it wants called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any

from max.pipelines.context.exceptions import InputError

from ..unicode import is_unicode

# All of them are one grammar, which has each name, strict or not. OpenAI takes names
# of 64 characters.
MOST_TOOLS = 1024
LONGEST_NAMES = 64 * MOST_TOOLS

one_call_only: ContextVar[bool] = ContextVar("one_call_only", default=False)
"""Whether the request of this task has ``parallel_tool_calls: false``."""


def read_tool_choice(body: Mapping[str, Any]) -> None:
    """Checks the tools of a chat request's JSON, and sets ``one_call_only``.

    Raises:
        InputError: A tool is no function or has another's name, they are too many or
            their names too long, or ``tool_choice`` asks for what is not there.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(old) is not None:
            raise InputError(f"{old} is the old name, which is not read; use {new}.")
    tools = body.get("tools") or []
    if len(tools) > MOST_TOOLS:
        raise InputError(f"There are {len(tools)} tools; give at most {MOST_TOOLS}.")
    names: dict[str, None] = {}  # in order
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise InputError(
                f"tools[{index}] is no function with a name; give "
                '{"type": "function", "function": {"name": ...}}.'
            )
        if name in names:
            raise InputError(
                f"Two tools are named {name!r}; give each a name of its own."
            )
        if not is_unicode(name):
            raise InputError(f"tools[{index}] is named {name!r}, which is no Unicode.")
        names[name] = None
    size = sum(map(len, names))
    if size > LONGEST_NAMES:
        raise InputError(
            f"The names of the tools have {size:,} characters together; give at "
            f"most {LONGEST_NAMES:,}."
        )
    _check_choice(body.get("tool_choice"), names)
    one_call_only.set(body.get("parallel_tool_calls") is False)


def _check_choice(choice: object, names: Collection[str]) -> None:
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise InputError(
            "tool_choice asks for a tool call, but the request has no tools; give "
            "tools or leave tool_choice out."
        )
    if not isinstance(choice, Mapping):
        return
    if choice.get("type") != "function":
        raise InputError(
            f"tool_choice has type {choice.get('type')!r}; only 'function' is served."
        )
    function = choice.get("function")
    wanted = function.get("name") if isinstance(function, Mapping) else None
    if wanted not in names:
        raise InputError(
            f"tool_choice names {wanted!r}, which is none of the request's tools: "
            f"{', '.join(names)}."
        )
