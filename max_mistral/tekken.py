"""The one regular expression of ``tekken.json``."""

from __future__ import annotations

from pathlib import Path

from .fields import Fields, read_json

# How text is cut before BPE in every tekken.json that Mistral has published.
PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def check_pattern(path: Path) -> None:
    """Raises a ``UserError`` if a ``tekken.json`` cuts text by another expression.

    Whoever reads the file runs the expression on all that clients send, and some
    take hours for a few words.
    """
    config = Fields(str(path), read_json(path).get).fields("config")
    pattern_of(config)


def pattern_of(config: Fields) -> str:
    """Returns the pattern in the ``config`` of a ``tekken.json``, a known one.

    Raises:
        UserError: (a ``ValueError``) if it is another.
    """
    pattern = config.string("pattern")
    if pattern != PATTERN:
        expected = f"the one of Mistral's own files, {PATTERN[:24]!r} and so on"
        config.refuse("pattern", pattern, expected)
    return pattern
