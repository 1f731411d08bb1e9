"""The one exception for what a user can mend, and words for others."""

import reprlib

import click

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 12

AGAIN = "Fetch the file again; if it says the same, it is not supported."
"""What to do about a value in a checkpoint's file that is not as expected."""


class UserError(click.ClickException, ValueError):
    """A wrong path, checkpoint, config value or flag, said in a sentence.

    A script sees a ``ValueError``. The ``max`` command line is built on click,
    which prints a ``ClickException`` as ``Error: ...`` without a traceback and
    exits with status 1.
    """


def refuse(key: str, found: object, expected: str) -> None:
    """Raises a :class:`UserError` about a value of ``config.json``."""
    raise UserError(
        f"config.json has {key} = {shown(found)}; max_mistral supports only "
        f"{expected}. {AGAIN}"
    )


def shown(found: object) -> str:
    """Returns a value as a message shows it: in one line, and not all of a long one."""
    return _REPR.repr(found)


def describe(error: OSError) -> str:
    """Returns a sentence about an error, which may name no file or have no number."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."
