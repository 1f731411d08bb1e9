"""Texts that a client or a model spells in JSON."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """Whether a text can be sent: JSON may spell half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
