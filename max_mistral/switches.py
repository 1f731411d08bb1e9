"""The environment variables of this package: each chooses one of a few words."""

from __future__ import annotations

import os

from .errors import UserError

FP8 = "MAX_MISTRAL_FP8"
KEEP_PACKED = "MAX_MISTRAL_KEEP_PACKED"
KERNELS = "MAX_MISTRAL_KERNELS"
LOOKUP = "MAX_MISTRAL_LOOKUP"
MATMUL = "MAX_MISTRAL_MATMUL"
SELF_CHECK = "MAX_MISTRAL_SELF_CHECK"
ALL = (FP8, KEEP_PACKED, KERNELS, LOOKUP, MATMUL, SELF_CHECK)


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
