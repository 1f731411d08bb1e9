"""What a chat request says that MAX does not pass on to tokenizers or parsers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from max.pipelines.context.exceptions import InputError

one_call_only: ContextVar[bool] = ContextVar("one_call_only", default=False)
"""Whether the request of this task has ``parallel_tool_calls: false``."""


def watch_requests() -> None:
    """Has MAX's chat route check ``tools`` and ``tool_choice`` as it reads a body.

    MAX 26.7 ignores ``parallel_tool_calls`` and a ``tool_choice`` that names no
    tool, and no hook of an architecture sees either. The route's request model
    is replaced by one that does. Without the route loaded there is no server.
    """
    routes: Any = sys.modules.get("max.serve.router.openai_routes")
    if routes is None:
        return
    model = routes.CreateChatCompletionRequest
    if getattr(model, "checks_tools", False):
        return

    class CheckedRequest(model):  # type: ignore[misc, valid-type]
        checks_tools = True

        @classmethod
        def model_validate(cls, obj: Any, **kwargs: Any) -> Any:
            request = super().model_validate(obj, **kwargs)
            if isinstance(obj, Mapping):
                check_tools(obj)
                one_call_only.set(obj.get("parallel_tool_calls") is False)
            return request

    CheckedRequest.__name__ = model.__name__
    routes.CreateChatCompletionRequest = CheckedRequest


def check_tools(body: Mapping[str, Any]) -> None:
    """Checks the tools of a request's JSON and what it says of them.

    Raises:
        InputError: A tool is no function or has another's name, or
            ``tool_choice`` asks for what is not there.
    """
    names: list[str] = []
    for index, tool in enumerate(body.get("tools") or []):
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
        names.append(name)
    _check_choice(body.get("tool_choice"), names)


def _check_choice(choice: object, names: list[str]) -> None:
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
