"""One JSON value, read a piece at a time."""

from __future__ import annotations

import re

_STRING = re.compile(r'[^"\\\x00-\x1f]*')
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS = ("true", "false", "null")
_CLOSES = {"}": "{", "]": "["}


class JsonValue:
    """Follows the text of one JSON value and says where it ends or breaks.

    ``json.loads`` needs the whole text; arguments that stream are passed on
    while they can still become a value. ``done`` and ``broken`` are final.
    """

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._open = ""  # the brackets that are open, outermost first
        self._want = "value"
        self._word = ""  # the number, literal or \u escape being read
        self._is_key = False

    def push(self, text: str) -> int:
        """Reads on; returns how many characters of ``text`` belong to the value."""
        at = 0
        while at < len(text) and not (self.done or self.broken):
            if self._want == "string":
                at = self._string(text, at)
            elif self._want in ("number", "word"):
                at = self._scalar(text, at)
            elif self._want in ("escape", "hex"):
                self._escape(text[at])
                at += not self.broken
            else:
                space = _SPACE.match(text, at)
                assert space is not None
                at = space.end()
                if at < len(text):
                    at += self._structure(text[at])
        return at

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string."""
        return self._want in ("string", "escape", "hex") and not self.broken

    def _string(self, text: str, at: int) -> int:
        plain = _STRING.match(text, at)
        assert plain is not None
        at = plain.end()
        if at == len(text):
            return at
        if text[at] == '"':
            if self._is_key:
                self._want = "colon"
            else:
                self._end_value()
        elif text[at] == "\\":
            self._want = "escape"
        else:
            self.broken = True
            return at
        return at + 1

    def _escape(self, char: str) -> None:
        if self._want == "escape":
            if char == "u":
                self._want, self._word = "hex", ""
            elif char in '"\\/bfnrt':
                self._want = "string"
            else:
                self.broken = True
        elif char in "0123456789abcdefABCDEF":
            self._word += char
            if len(self._word) == 4:
                self._want = "string"
        else:
            self.broken = True

    def _scalar(self, text: str, at: int) -> int:
        """Reads one character of a number or a literal, or ends it."""
        char = text[at]
        if self._want == "number":
            if char in "+-.0123456789eE":
                self._word += char
                return at + 1
            self._end_scalar()
            return at
        self._word += char
        if self._word in _WORDS:
            self._end_value()
        elif not any(word.startswith(self._word) for word in _WORDS):
            self.broken = True
            return at
        return at + 1

    def _structure(self, char: str) -> int:
        """Takes a character between values; returns 1 if it belongs."""
        want = self._want
        if want in ("value", "value or ]"):
            return self._start_value(char)
        if want in ("key", "key or }") and char == '"':
            self._want, self._is_key = "string", True
        elif want == "colon" and char == ":":
            self._want = "value"
        elif want == "next" and char == ",":
            self._want = "key" if self._open[-1] == "{" else "value"
        elif want in ("next", "key or }") and _CLOSES.get(char) == self._open[-1]:
            self._open = self._open[:-1]
            self._end_value()
        else:
            self.broken = True
        return int(not self.broken)

    def _start_value(self, char: str) -> int:
        if char == '"':
            self._want, self._is_key = "string", False
        elif char in "{[":
            self._open += char
            self._want = "key or }" if char == "{" else "value or ]"
        elif char in "-0123456789":
            self._want, self._word = "number", char
        elif char in "tfn":
            self._want, self._word = "word", char
        elif char == "]" and self._want == "value or ]":
            self._open = self._open[:-1]
            self._end_value()
        else:
            self.broken = True
        return int(not self.broken)

    def _end_scalar(self) -> None:
        if _NUMBER.fullmatch(self._word):
            self._end_value()
        else:
            self.broken = True

    def _end_value(self) -> None:
        if self._open:
            self._want = "next"
        else:
            self.done = True
