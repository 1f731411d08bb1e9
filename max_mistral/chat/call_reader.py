"""The text of an answer, read a piece at a time into content and tool calls.

What calls look like, by tokenizer version (``MARK`` is ``[TOOL_CALLS]``):

    v2         MARK [{"name": ..., "arguments": {...}}, ...]
    v3, v7     MARK[{"name": ..., "arguments": {...}, "id": ...}, ...]
    v11        MARKname[CALL_ID]id[ARGS]{...}MARK...
    v13, v15   MARKname[ARGS]{...}MARK...
    fine-tunes MARKname{...} or MARK{"name": ..., "arguments": {...}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .call_list import CallList
from .events import Arguments, Broken, Call, Content, Event, new_id
from .json_value import JsonValue

MARK = "[TOOL_CALLS]"
ID_MARK = "[CALL_ID]"
ARGS_MARK = "[ARGS]"
MAX_NAME = 1024  # as long as MAX lets a tool be named
_HEADER = re.compile(
    r"([A-Za-z0-9_.:/-]*)\s*(?:\[CALL_ID\]\s*([A-Za-z0-9_-]*)\s*)?(?:\[ARGS\]\s*)?"
)
_LIST = re.compile(r"\[\s*[{\]]|\{")
_LIST_STARTS = re.compile(r"\[\s*")
_BRACES = "}] \t\r\n"


class CallReader:
    """Turns the pieces of an answer into events, wherever it was cut.

    No character is lost or repeated, but for what is a call's form: the
    markers, the JSON around its name and arguments, its id, and white space
    next to it.

    Args:
        mark: What begins a call.
        close: What ends one where the format has such a marker, else "".
    """

    def __init__(self, mark: str = MARK, close: str = "") -> None:
        self._mark = mark
        self._close = close
        self._held = ""  # read, but what it is depends on what follows
        self._over = False
        self._step: Callable[[], Iterator[Event]] = self._text
        self._ids: list[str] = []
        self._json: JsonValue | CallList = JsonValue()

    def feed(self, text: str) -> list[Event]:
        """Reads the next piece."""
        self._held += text
        events: list[Event] = []
        before = None
        while before != (self._held, self._step):
            before = (self._held, self._step)
            events.extend(self._step())
        return events

    def finish(self) -> list[Event]:
        """Says that no piece follows: what is held back is what it looks like."""
        self._over = True
        events = self.feed("")
        if self._step == self._arguments:
            events.append(Broken(len(self._ids) - 1))
        elif self._step == self._list:
            assert isinstance(self._json, CallList)
            events.extend(self._json.give_up())
        if self._step != self._after or self._held.strip():
            events.extend(self._content(len(self._held)))
        return events

    def _text(self) -> Iterator[Event]:
        """Before the first call, or between two."""
        at = self._held.find(self._mark)
        if at < 0:
            yield from self._content(len(self._held) - self._unsure())
            return
        yield from self._content(at)
        self._take(len(self._mark))
        self._step = self._header

    def _header(self) -> Iterator[Event]:
        """After the marker: a list, an object, or a name and what follows it."""
        body = self._held.lstrip()
        space = len(self._held) - len(body)
        if _LIST.match(body):
            self._take(space)
            self._json, self._step = CallList(self._call), self._list
            return
        header = _HEADER.match(body)
        assert header is not None
        name, rest = header[1], body[header.end() :]
        if len(name) > MAX_NAME:
            yield from self._content(space + MAX_NAME)
            self._step = self._text
        elif name and rest.startswith("{"):
            taken = self._take(space + header.end())
            yield self._call(name, header[2], self._bare(taken))
            self._json, self._step = JsonValue(), self._arguments
        elif not self._may_become_call(header, rest):
            yield from self._content(space + header.end())
            self._step = self._text

    def _may_become_call(self, header: re.Match[str], rest: str) -> bool:
        if not header[0] and _LIST_STARTS.fullmatch(rest):
            return True
        marks = [m for m in (ID_MARK, ARGS_MARK) if m not in header[0]]
        return not rest or any(mark.startswith(rest) for mark in marks)

    def _arguments(self) -> Iterator[Event]:
        assert isinstance(self._json, JsonValue)
        end = self._end_of_json()
        taken = self._take(self._json.push(self._held[:end]))
        index = len(self._ids) - 1
        if taken:
            yield Arguments(index, taken)
        if self._json.done:
            self._step = self._after
        elif self._json.broken or self._at_mark():
            yield Broken(index)
            self._step = self._text

    def _list(self) -> Iterator[Event]:
        assert isinstance(self._json, CallList)
        count, events = self._json.push(self._held[: self._end_of_json()])
        self._take(count)
        yield from events
        if self._json.done:
            self._step = self._after
        elif self._json.broken or self._at_mark():
            yield from self._json.give_up()
            self._step = self._after if self._json.whole else self._text

    def _end_of_json(self) -> int:
        """How far to read: in JSON a marker is text only within a string."""
        at = self._held.find(self._mark)
        if at > 0:
            return at
        if at == 0 and self._json.in_string:
            return len(self._mark)
        return 0 if at == 0 else len(self._held) - self._unsure()

    def _at_mark(self) -> bool:
        return self._held.startswith(self._mark) and not self._json.in_string

    def _after(self) -> Iterator[Event]:
        """After a call: its closing marker, the next call, or text."""
        body = self._held.lstrip()
        # Small models write a brace too many.
        closing = body.lstrip(_BRACES) if self._close else body
        if self._close and closing.startswith(self._close):
            self._take(len(self._held) - len(closing) + len(self._close))
        elif self._close and self._close.startswith(closing) and not self._over:
            pass
        elif body.startswith(self._mark):
            self._take(len(self._held) - len(body))
            self._step = self._text
        elif not any(m.startswith(body) for m in (self._mark, self._close)):
            self._step = self._text
        yield from ()

    def _call(self, name: str, said_id: object, header: str) -> Call:
        call_id = new_id(said_id, self._ids)
        self._ids.append(call_id)
        return Call(len(self._ids) - 1, call_id, name, header)

    def _unsure(self) -> int:
        """How many of the last held characters may be the start of a marker."""
        if self._over:
            return 0
        longest = min(len(self._held), len(self._mark) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if self._held.endswith(self._mark[:n])), 0)

    def _content(self, count: int) -> Iterator[Event]:
        taken = self._take(count)
        text = self._bare(taken) if self._step == self._header else taken
        if text:
            yield Content(text)

    def _bare(self, text: str) -> str:
        for mark in (self._mark, ID_MARK, ARGS_MARK):
            text = text.replace(mark, "")
        return text

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken
