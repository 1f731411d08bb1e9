"""A checkpoint's tensors against those that must be there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice

from ..errors import UserError, shown
from .names import ExpectedTensor

# As many problems as a message tells.
_MOST_SHOWN = 10
# No name of a tensor comes near it.
_LONGEST_NAME = 200
_NUMBER = re.compile(r"\d+")


def check_tensors(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, ExpectedTensor],
    dropped: Collection[str],
    source: str,
) -> None:
    """Raises unless ``found`` holds just the expected tensors, in their shapes.

    Args:
        found: The shapes of the checkpoint's tensors by name.
        expected: What must be there.
        dropped: What may be there.
        source: What to call the checkpoint in the message.

    Raises:
        UserError: (a ``ValueError``) naming the first ten tensors that are unknown,
            missing or misshapen, an unknown one with the name it is likely to mean.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and name not in dropped]
    misshapen = [
        name
        for name, tensor in expected.items()
        if name in found and found[name] != tensor.shape
    ]
    count = len(unknown) + len(missing) + len(misshapen)
    if not count:
        return
    # Made one by one: a hint takes long, and a file may have names without end.
    problems = chain(
        _unknown_problems(unknown, missing, expected),
        (f"{name} is missing" for name in missing),
        (
            f"{name} has shape {list(found[name])}, but config.json makes it "
            f"{list(expected[name].shape)}"
            for name in misshapen
        ),
    )
    lines = list(islice(problems, _MOST_SHOWN))
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    raise UserError(
        f"The tensors of {source} do not fit its config.json:\n  "
        + "\n  ".join(lines)
        + "\nTake config.json and all weights from the same checkpoint."
    )


def _unknown_problems(
    unknown: list[str], missing: list[str], expected: Mapping[str, ExpectedTensor]
) -> Iterator[str]:
    for name in unknown:
        # A misspelt name leaves the right one missing, so look there first.
        likely = _likely(name, missing) or _likely(name, expected)
        hint = f"; did you mean {likely[0]}?" if likely else ""
        plain = name.isprintable() and len(name) <= _LONGEST_NAME
        yield f"{name if plain else shown(name)} is unknown{hint}"


def _likely(name: str, known: Iterable[str]) -> list[str]:
    """The name that is meant, if any, of the same layer: others are too many."""
    if len(name) > _LONGEST_NAME:
        return []
    layer = _first_number(name)
    near = [each for each in known if _first_number(each) == layer]
    return difflib.get_close_matches(name, near, n=1)


def _first_number(name: str) -> str | None:
    found = _NUMBER.search(name)
    return found and found[0]
