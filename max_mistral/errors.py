"""The one exception for what a user can mend."""

import click


class UserError(click.ClickException, ValueError):
    """A wrong path, checkpoint, config value or flag, said in a sentence.

    A script sees a ``ValueError``. The ``max`` command line is built on click,
    which prints a ``ClickException`` as ``Error: ...`` without a traceback and
    exits with status 1.
    """


def refuse(key: str, found: object, expected: str) -> None:
    """Raises a :class:`UserError` about a value of ``config.json``."""
    raise UserError(
        f"config.json has {key} = {found!r}; max_mistral supports only {expected}."
    )
