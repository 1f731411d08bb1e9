"""What the text of an answer says, in order."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass

_ALPHANUMERIC = string.ascii_letters + string.digits
_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call whose name is known; its arguments follow. ``header`` is its text."""

    index: int
    id: str
    name: str
    header: str


@dataclass(frozen=True)
class Arguments:
    """The next characters of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class Broken:
    """The call is none after all; what follows of its text comes as content."""

    index: int


Event = Content | Call | Arguments | Broken


def is_call_id(value: object) -> bool:
    """Says whether an id can stand in a Mistral prompt: 9 alphanumerics."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def new_id(wanted: object = None, taken: Collection[str] = ()) -> str:
    """Returns ``wanted`` if a prompt can hold it and it is free, else a random id."""
    while not isinstance(wanted, str) or not is_call_id(wanted) or wanted in taken:
        wanted = "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
    return wanted
