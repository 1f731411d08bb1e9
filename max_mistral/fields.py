"""Values from a file, checked for type and range as they are read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AGAIN, UserError, shown

# What no model of the family comes near, so that a damaged number is refused
# before anything is made by it.
MOST_LAYERS = 4096
MOST_LABELS = 2**16
MOST_TOKENS = 2**24
MOST_WIDE = 2**20
# float32, in which RoPE counts positions, is exact up to here.
MOST_POSITIONS = 2**24
MOST_SCALE = 1e6
LEAST_EPS, MOST_EPS = 1e-12, 1.0
# The base of RoPE; at 1 all frequencies would be the same.
LEAST_THETA, MOST_THETA = 1.001, 1e15
# In bytes, of a file that is read whole; the largest tekken.json has 20 MB.
MOST_FILE = 2**28


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        UserError: (a ``ValueError``) if it is no JSON, no object, has a key
            twice, or is larger than :data:`MOST_FILE`.
        OSError: If the file cannot be read.
    """
    return parse_json(read_whole(path), str(path))


def read_whole(path: Path) -> bytes:
    """Returns the bytes of a checkpoint's file that is no weights.

    Raises:
        UserError: (a ``ValueError``) if it is no plain file, or larger than
            :data:`MOST_FILE`.
        OSError: If the file cannot be read.
    """
    if is_no_file(path):
        what = "a folder" if path.is_dir() else "no plain file"
        raise UserError(
            f"{path} is {what}; expected a file. Copy the checkpoint's file there."
        )
    refuse_large(path)
    return path.read_bytes()


def refuse_large(path: Path) -> None:
    """Raises a ``UserError`` if a file is larger than :data:`MOST_FILE`."""
    # A sparse file of any size takes no room on the disk, but all of memory.
    size = path.stat().st_size
    if size > MOST_FILE:
        raise UserError(
            f"{path} has {size} bytes; expected {MOST_FILE} at most. Fetch it again."
        )


def is_no_file(path: Path) -> bool:
    """Whether a folder, pipe or device is there.

    To open a pipe waits for whoever writes to it, perhaps for ever.
    """
    return path.exists() and not path.is_file()


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """Returns the JSON object that a file's bytes are.

    Args:
        data: The bytes.
        source: What to call them in a message.

    Raises:
        UserError: (a ``ValueError``) if they are no JSON, another value than an
            object, or name a key twice.
    """
    try:
        found = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is not valid JSON ({error}). Fetch it again."
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"{source} has {shown(found)}; expected a JSON object. Fetch it again."
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} is there twice")
    return found


@dataclass(frozen=True)
class Fields:
    """The fields of one object; every method raises a ``UserError`` at a bad one.

    A field that is null counts as missing. Where a ``default`` can be given and
    is not, the field must be there.
    """

    source: str
    """What to call the file in a message."""
    get: Callable[[Any], Any]
    """Returns a field's value, ``None`` where it is missing."""

    def has(self, key: str | int) -> bool:
        """Whether the field is there and not null."""
        return self.get(key) is not None

    def integer(
        self,
        key: str | int,
        low: int = 1,
        high: int = 2**31 - 1,
        default: int | None = None,
    ) -> int:
        """Returns a whole number from ``low`` to ``high``."""
        value = self._value(key, default)
        # True is an int to Python.
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def number(
        self,
        key: str | int,
        low: float = 1 / MOST_SCALE,
        high: float = MOST_SCALE,
        default: float | None = None,
    ) -> float:
        """Returns a number from ``low`` to ``high``."""
        value = self._value(key, default)
        # NaN is not between any two.
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse(key, value, f"a number from {low:g} to {high:g}")
        return value

    def boolean(self, key: str | int, default: bool | None = None) -> bool:
        """Returns true or false."""
        value = self._value(key, default)
        if type(value) is not bool:
            self.refuse(key, value, "true or false")
        return value

    def string(self, key: str | int, default: str | None = None) -> str:
        """Returns a string."""
        value = self._value(key, default)
        if type(value) is not str:
            self.refuse(key, value, "a string")
        return value

    def one_of(
        self, key: str | int, known: Collection[Any], default: Any = None
    ) -> Any:
        """Returns a value that is one of ``known``."""
        value = self._value(key, default)
        # No "in": what is not hashable may be found, and 1 equals True.
        if not any(type(value) is type(k) and value == k for k in known):
            self.refuse(key, value, " or ".join(map(repr, known)))
        return value

    def items(self, key: str | int, kind: type, high: int | None = None) -> list[Any]:
        """Returns a list whose items are all of one type, ``high`` at most."""
        value = self._value(key, None)
        if not isinstance(value, list) or (high is not None and len(value) > high):
            most = "" if high is None else f" of at most {high}"
            self.refuse(key, value, f"a list{most}")
        for i, item in enumerate(value):
            if type(item) is not kind:
                self.refuse(f"{key}[{i}]", item, f"of type {_CALLED[kind]}")
        return value

    def fields(self, key: str | int) -> Fields:
        """Returns the fields of an object within."""
        value = self._value(key, None)
        if not isinstance(value, dict):
            self.refuse(key, value, "an object")
        return Fields(f"{self.source}: {key}", value.get)

    def refuse(
        self, key: str | int, found: object, expected: str, mend: str = AGAIN
    ) -> None:
        """Raises a ``UserError`` that says what was found and what was expected."""
        raise UserError(
            f"{self.source} has {key} = {shown(found)}; expected {expected}. {mend}"
        )

    def _value(self, key: str | int, default: Any) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(
                f"{self.source} lacks {key}. Copy the file that belongs to the "
                "checkpoint."
            )
        return value


_CALLED = {dict: "object", str: "string", int: "whole number", float: "number"}
