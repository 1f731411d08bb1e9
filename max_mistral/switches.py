"""Environment variables that are on or off."""

from __future__ import annotations

import os

from .errors import UserError


def is_on(variable: str) -> bool:
    """Whether an environment variable is ``on``, the default, or ``off``.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    found = os.environ.get(variable, "on")
    if found not in ("on", "off"):
        raise UserError(f"{variable} is {found!r}. Set it to on or off.")
    return found == "on"
