"""Tool calls written as JSON: ``[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

import json
from collections.abc import Callable

from ..unicode import is_unicode
from .events import Arguments, Broken, Call, Content, Event
from .json_value import JsonValue

_ARGUMENTS = ("arguments", "parameters")


class CallList:
    """Reads a list of calls, or one call, a piece at a time.

    A call's arguments stream once its name is known; a call is whole when they
    are. ``done`` and ``broken`` are final.

    Args:
        call: Makes the event of a call from its name, the id that the model
            wrote (or None) and the text up to its arguments.
    """

    def __init__(self, call: Callable[[str, object, str], Call]) -> None:
        self.done = False
        self.broken = False
        self._call = call
        self._want = "start"
        self._many = False
        self._raw = ""  # since the last whole call, what was not passed on
        self._new_element()

    def _new_element(self) -> None:
        self._key = ""
        self._text = ""  # of the key or value that is being read
        self._value: JsonValue | None = None
        self._name: str | None = None
        self._id: object = None
        self._held: str | None = None  # arguments that came before the name
        self._opened: Call | None = None
        self._whole = False

    @property
    def whole(self) -> bool:
        """Whether the arguments of the last call are complete."""
        return self._whole

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string."""
        return self._value is not None and self._value.in_string

    def push(self, text: str) -> tuple[int, list[Event]]:
        """Reads on; returns how many characters were taken, and what they say."""
        events: list[Event] = []
        at = 0
        while at < len(text) and not (self.done or self.broken):
            if self._value is None:
                at += self._structure(text[at], events)
                continue
            count = self._value.push(text[at:])
            self._pass_on(text[at : at + count], events)
            at += count
            if self._value.broken:
                self.broken = True
            elif self._value.done:
                self._end_value()
        return at, events

    def give_up(self) -> list[Event]:
        """Returns what the unfinished call is instead: text."""
        if self._whole:
            return []
        if self._opened:
            return [Broken(self._opened.index)]
        return [Content(self._raw)] if self._raw else []

    def _streams(self) -> bool:
        return self._opened is not None and not self._whole

    def _pass_on(self, piece: str, events: list[Event]) -> None:
        if self._want == "value" and self._key in _ARGUMENTS and self._streams():
            assert self._opened is not None
            if piece:
                events.append(Arguments(self._opened.index, piece))
        else:
            self._text += piece
            self._raw += piece

    def _structure(self, char: str, events: list[Event]) -> int:
        """Takes a character between keys and values; returns 1 if it belongs."""
        want = self._want
        if char in " \t\r\n":
            pass
        elif want == "start" and char == "[":
            self._many, self._want = True, "element or ]"
        elif want in ("start", "element", "element or ]") and char == "{":
            self._new_element()
            self._want = "key or }"
        elif want in ("key", "key or }") and char == '"':
            self._value, self._text, self._want = JsonValue(), "", "key"
            return 0
        elif want == "colon" and char == ":":
            self._want = "value"
        elif want == "value":
            self._start_value(char, events)
            return 0
        elif want == "next" and char == ",":
            self._want = "key"
        elif want in ("next", "key or }") and char == "}":
            return self._end_element(events)
        elif want == "after" and char == ",":
            self._want = "element"
        elif want in ("after", "element or ]") and char == "]":
            self.done = True
        else:
            self.broken = True
            return 0
        self._raw += char
        return 1

    def _start_value(self, char: str, events: list[Event]) -> None:
        self._value, self._text = JsonValue(), ""
        unheard = self._opened is None and self._held is None
        named = self._name is not None
        if self._key in _ARGUMENTS and char == "{" and named and unheard:
            self._open(events)

    def _end_value(self) -> None:
        self._value = None
        if self._want == "key":
            self._key, self._want = json.loads(self._text), "colon"
            return
        self._want = "next"
        if self._key in _ARGUMENTS:
            if self._streams():
                self._whole = True
                self._raw = ""
            elif self._held is None and not self._whole:
                self._held = _as_object(self._text)
                self.broken = self._held is None
        elif self._key in ("name", "id") and self._text.startswith('"'):
            said = json.loads(self._text)
            if self._key == "name":
                self._name = self._name or said or None
                self.broken = not is_unicode(said)
            else:
                self._id = said

    def _end_element(self, events: list[Event]) -> int:
        if self._opened is None:
            if self._name is None:
                self.broken = True
                return 0
            call = self._open(events)
            events.append(Arguments(call.index, self._held or "{}"))
            self._whole = True
        self._raw = ""
        if self._many:
            self._want = "after"
        else:
            self.done = True
        return 1

    def _open(self, events: list[Event]) -> Call:
        assert self._name is not None
        self._opened = self._call(self._name, self._id, self._raw)
        events.append(self._opened)
        return self._opened


def _as_object(text: str) -> str | None:
    """Returns arguments as the text of an object, or None if they are none."""
    if text.startswith('"'):
        text = json.loads(text).strip()
        inside = JsonValue()
        if inside.push(text) < len(text) or not inside.done or not is_unicode(text):
            return None
    if text == "null":
        return "{}"
    return text if text.startswith("{") else None
