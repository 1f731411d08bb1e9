"""Environment variables that choose one of a few words."""

from __future__ import annotations

import os

from .errors import UserError


def chosen(variable: str, *choices: str) -> str:
    """Returns what an environment variable chooses, by default the first.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    found = os.environ.get(variable, choices[0])
    if found not in choices:
        *others, last = choices
        raise UserError(
            f"{variable} is {found!r}. Set it to {', '.join(others)} or {last}."
        )
    return found


def is_on(variable: str) -> bool:
    """Whether an environment variable is ``on``, the default, or ``off``.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    return chosen(variable, "on", "off") == "on"
