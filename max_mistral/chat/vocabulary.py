"""A tokenizer's control tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=8)
def special_tokens(delegate: Any) -> Mapping[str, int]:
    """Returns the ids of a Hugging Face tokenizer's control tokens, by their text."""
    return {
        token.content: index
        for index, token in delegate.added_tokens_decoder.items()
        if token.special
    }
