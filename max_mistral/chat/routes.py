"""Where MAX's chat route has no hook for an architecture, and needs one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from max.pipelines.context.exceptions import InputError

one_call_only: ContextVar[bool] = ContextVar("one_call_only", default=False)
"""Whether the request of this task has ``parallel_tool_calls: false``."""


def hook_routes() -> None:
    """Has MAX's chat route ask us two things that it asks no architecture.

    MAX 26.7 ignores ``parallel_tool_calls`` and a ``tool_choice`` that names no
    tool, and JSON that is nested too deep is a 500: we see each body that it
    reads. And of an answer whose calls are all broken it keeps what stood before
    the marker: the parser knows better. Without the route loaded there is no
    server.
    """
    routes: Any = sys.modules.get("max.serve.router.openai_routes")
    if routes is None or hasattr(routes._parse_openai_request_body, "checks_tools"):
        return
    parse = routes._parse_openai_request_body
    cut = routes._content_before_tool_call_marker
    checked = {routes.CreateChatCompletionRequest: _checked_model(routes)}

    async def parse_checked(request: Any, request_id: str, model: Any) -> Any:
        try:
            return await parse(request, request_id, checked.get(model, model))
        except RecursionError:
            message = "The request's JSON has too many levels to be read."
            raise InputError(message) from None

    def content_without_calls(parser: Any, response: str) -> str:
        own = getattr(parser, "content_without_calls", None)
        return own(response) if own else cut(parser, response)

    parse_checked.checks_tools = True  # type: ignore[attr-defined]
    routes._parse_openai_request_body = parse_checked
    routes._content_before_tool_call_marker = content_without_calls


def _checked_model(routes: Any) -> Any:
    """Returns MAX's model of a chat request, which looks at its tools as well."""

    class CheckedRequest(routes.CreateChatCompletionRequest):
        @classmethod
        def model_validate(cls, obj: Any, **kwargs: Any) -> Any:
            request = super().model_validate(obj, **kwargs)
            if isinstance(obj, Mapping):
                check_tools(obj)
                one_call_only.set(obj.get("parallel_tool_calls") is False)
            return request

    # Its name is in the text of a validation error.
    CheckedRequest.__name__ = routes.CreateChatCompletionRequest.__name__
    return CheckedRequest


def check_tools(body: Mapping[str, Any]) -> None:
    """Checks the tools of a request's JSON and what it says of them.

    Raises:
        InputError: A tool is no function or has another's name, or
            ``tool_choice`` asks for what is not there.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(old) is not None:
            raise InputError(f"{old} is the old name, which is not read; use {new}.")
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
