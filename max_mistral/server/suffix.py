"""``suffix`` of a completion, which MAX 26.7 drops: its prompts become token ids."""

from __future__ import annotations

import asyncio
from typing import Any

from max.pipelines.context.exceptions import InputError, PromptTooLongError

from .request_fields import as_prompts

# Of the suffixes of all prompts together: they are kept as ids, some 40 bytes each.
MOST_CHARACTERS = 4 * 2**20


async def filled_in(body: Any, tokenizer: Any) -> list[list[int]]:
    """Returns the ids of each prompt with the suffix.

    Args:
        body: MAX's pydantic model of a completion, whose prompts are texts.
        tokenizer: A ``MistralTokenizer``.

    Raises:
        InputError: (a ``ValueError``) if the model does not fill in, or it would be
            too much.
    """
    texts, suffix = as_prompts(body.prompt), body.suffix
    if len(texts) > 1 and len(texts) * len(suffix) > MOST_CHARACTERS:
        raise InputError(
            f"suffix has {len(suffix)} characters for each of {len(texts)} prompts, "
            f"but may have {MOST_CHARACTERS} in all: send several requests."
        )
    filled: list[list[int]] = []
    for text in texts:
        ids = await asyncio.to_thread(tokenizer.encode_fim, text, suffix)
        if ids is None:
            raise InputError(
                f"suffix needs a model that fills in, as Codestral does; {body.model} "
                "has no tokens [PREFIX] and [SUFFIX]: leave suffix out."
            )
        # Before the next is made: the suffix is in each of them.
        if tokenizer.max_length and len(ids) > tokenizer.max_length:
            raise PromptTooLongError(len(ids), tokenizer.max_length)
        filled.append(ids)
    return filled
