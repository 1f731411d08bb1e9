"""The tool parsers that MAX finds by name, for vocabularies of two kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

from max.pipelines.context.exceptions import InputError
from max.pipelines.lib.tool_parsing import StructuralTagToolParser, register
from max.pipelines.modeling.types import (
    ParsedToolCall,
    ParsedToolCallDelta,
    ParsedToolResponse,
)

from .call_reader import MARK, CallReader
from .events import Arguments, Broken, Call, Content, Event
from .schemas import check_size, check_together
from .tool_choice import one_call_only
from .tool_grammar import HELD, tool_grammar

no_whole_call: ContextVar[bool] = ContextVar("no_whole_call", default=False)
"""Whether this task's stream has ended without a whole call."""

NAME = "mistral"
TAGS_NAME = "mistral_tags"


@register(NAME)
class MistralToolParser(StructuralTagToolParser):
    """Reads the calls of every Mistral tokenizer version, streamed or not.

    A call whose JSON is broken or unfinished is content. A stream has sent the
    name and what was good of the arguments by then: only the rest is content.
    """

    CALL_BEGIN: ClassVar[str] = MARK
    CALL_CLOSE: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        # MAX makes a parser per request, after it has read the request.
        self._single = one_call_only.get()
        self.reset()

    def reset(self) -> None:
        """Forgets what was streamed."""
        self._reader = CallReader(self.CALL_BEGIN, self.CALL_CLOSE)
        # Of a stream, by their numbers: whether they are whole so far.
        self._whole: dict[int, bool] = {}
        no_whole_call.set(False)

    def parse_complete(self, response: str) -> ParsedToolResponse:
        """Returns the content and the calls of a whole answer.

        Raises:
            ValueError: There is a marker and no call; then MAX's route asks for
                ``content_without_calls``.
        """
        parsed = self.read(response)
        if not parsed.tool_calls and parsed.content != (response or None):
            raise ValueError("the answer has a marker for tool calls and no whole call")
        return parsed

    def content_without_calls(self, response: str) -> str:
        """Returns the text of an answer whose calls are all broken."""
        return self.read(response).content or ""

    def read(self, response: str) -> ParsedToolResponse:
        """Returns the content and the calls of a whole answer; never raises."""
        reader = CallReader(self.CALL_BEGIN, self.CALL_CLOSE)
        content: list[str] = []
        calls: dict[int, tuple[Call, list[str]]] = {}
        for event in self._wanted([*reader.feed(response), *reader.finish()]):
            match event:
                case Content(text):
                    content.append(text)
                case Call(index):
                    calls[index] = event, []
                case Arguments(index, text):
                    calls[index][1].append(text)
                case Broken(index):
                    call, arguments = calls.pop(index)
                    content.extend([call.header, *arguments])
        return ParsedToolResponse(
            content="".join(content) or None,
            tool_calls=[
                ParsedToolCall(id=call.id, name=call.name, arguments="".join(arguments))
                for call, arguments in calls.values()
            ],
        )

    def parse_delta(self, delta: str) -> list[ParsedToolCallDelta] | None:
        """Returns what the next piece of an answer says; [] for nothing yet."""
        events = self._read_on(self._reader.feed(delta))
        return [_as_delta(event) for event in events if not isinstance(event, Broken)]

    def flush(self) -> str | None:
        """Returns what was held back when the answer ends: content by then."""
        events = self._read_on(self._reader.finish())
        no_whole_call.set(not any(self._whole.values()))
        held = (e.text for e in events if isinstance(e, Content | Arguments))
        return "".join(held) or None

    def _read_on(self, found: Iterable[Event]) -> list[Event]:
        """Returns those of a stream's events that are wanted."""
        events = self._wanted(found)
        for event in events:
            if isinstance(event, Call | Broken):
                self._whole[event.index] = isinstance(event, Call)
        return events

    def _wanted(self, events: Iterable[Event]) -> list[Event]:
        """Drops all but the first call where the request takes one only."""
        return [
            event
            for event in events
            if isinstance(event, Content) or not (self._single and event.index > 0)
        ]

    @classmethod
    def generate_tool_call_grammar(
        cls,
        response_format_schema: dict[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        tokenizer: Any = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        **_: Any,
    ) -> str:
        """Returns MAX's structural tag (JSON) for the calls that tools allow.

        Raises:
            InputError: A schema is too large to be enforced.
        """
        tools = tools or []
        for tool in tools:
            if tool["function"].get("strict"):
                name = tool["function"]["name"]
                check_size(tool["function"]["parameters"], f"tool {name!r}")
        if response_format_schema is not None:
            check_size(response_format_schema, "response_format")
        named = isinstance(tool_choice, Mapping)
        if named or tool_choice == "required":
            tools = held(tools)
        return tool_grammar(
            tools,
            tokenizer.delegate,
            mark=cls.CALL_BEGIN,
            close=cls.CALL_CLOSE,
            single=named or one_call_only.get(),
            answer_schema=response_format_schema,
        )

    # What the base class asks for and never calls: this class has its own reader.
    def _parse_complete_section(self, tool_section: str) -> list[ParsedToolCall]:
        raise NotImplementedError

    def _split_tool_call_body(
        self, body: str, is_complete: bool
    ) -> tuple[str | None, str | None]:
        raise NotImplementedError


@register(TAGS_NAME)
class TagToolParser(MistralToolParser):
    """Reads ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

    The form of fine-tunes and Llama-like models whose vocabulary has no
    ``[TOOL_CALLS]``: Hermes, Qwen and SmolLM2 were trained on it.
    """

    CALL_BEGIN: ClassVar[str] = "<tool_call>"
    CALL_CLOSE: ClassVar[str] = "</tool_call>"


def held(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns tools of a forced call, which is held to each schema not too large.

    ``strict`` or not: llama.cpp and vLLM do the same.
    """
    found, schemas = [], []
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters")
        if not function.get("strict"):
            try:
                check_size(schema, "")
            except InputError:
                found.append(tool)
                continue
        schemas.append(schema)
        found.append(tool | {"function": function | {HELD: True}})
    try:
        check_together(schemas)
    except InputError:
        return tools
    return found


def _as_delta(event: Event) -> ParsedToolCallDelta:
    match event:
        case Content(text):
            return ParsedToolCallDelta(index=0, content=text)
        case Call(index, call_id, name):
            return ParsedToolCallDelta(index=index, id=call_id, name=name)
        case Arguments(index, text):
            return ParsedToolCallDelta(index=index, arguments=text)
    raise AssertionError(event)
