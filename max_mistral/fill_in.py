"""Code between a prompt and a suffix: Codestral's and Devstral's own task."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from max.pipelines.lib.tokenizer import replace_unpaired_surrogates
from tokenizers import Tokenizer

from .chat import special_tokens
from .mistral_common_chat import MistralChat

_BOS, _PREFIX, _SUFFIX = "<s>", "[PREFIX]", "[SUFFIX]"

# A suffix goes on in the middle of a text: sentencepiece would begin it with a
# space if it came first.
_BEFORE = "☺"


def encode_fim(
    prompt: str, suffix: str, delegate: Any, own: MistralChat | None
) -> list[int] | None:
    """Returns ids after which a model writes what stands between two texts.

    ``None`` where the vocabulary has no tokens for it. mistral-common encodes
    them where the checkpoint has its file; elsewhere the Hugging Face tokenizer
    does the same. Nothing in the texts is a control token.

    Args:
        prompt: What stands before; may be empty.
        suffix: What stands after; may be empty.
        delegate: The Hugging Face tokenizer.
        own: mistral-common's tokenizer of the same vocabulary, if there is one.
    """
    prompt, suffix = map(replace_unpaired_surrogates, (prompt, suffix))
    if own is not None:
        return own.encode_fim(prompt, suffix) if own.has_fim else None
    special = special_tokens(delegate)
    if not special.keys() >= {_BOS, _PREFIX, _SUFFIX}:
        return None
    plain = _plain(delegate)

    def ids(text: str) -> list[int]:
        return plain.encode(text, add_special_tokens=False).ids

    suffix_ids = ids(_BEFORE + suffix)[len(ids(_BEFORE)) :]
    return [
        *(special[_BOS], special[_SUFFIX], *suffix_ids),
        *(special[_PREFIX], *ids(prompt)),
    ]


@lru_cache(maxsize=1)
def _plain(delegate: Any) -> Tokenizer:
    """Returns a tokenizer to which the text of a control token is text."""
    plain = Tokenizer.from_str(delegate.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    return plain
