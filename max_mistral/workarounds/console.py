"""``max generate`` prints an answer as ``max serve`` sends it.

MAX 26.7 decodes each step's tokens by themselves. So a character of several tokens
comes as U+FFFD, and where a step gives several tokens (prompt lookup's do),
sentencepiece leaves out the space before the first. What an answer ends with, if it
is less than a character, is not printed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from max.serve.pipelines.incremental_detokenizer import (
    BufferedDetokenizer,
    create_buffered_detokenizer,
)

printed: ContextVar[BufferedDetokenizer | None] = ContextVar("printed", default=None)
"""What decodes the tokens of the answer that this task prints, if it prints one."""


def print_whole_characters() -> None:
    """Changes ``max generate``, once; where it is not loaded it does not run."""
    generate: Any = sys.modules.get("max._entrypoints.cli.generate")
    if generate is None or hasattr(generate.stream_context, "decodes_on"):
        return
    stream = generate.stream_context

    @functools.wraps(stream)
    async def stream_context(pipeline: Any, context: Any, on_tokens: Any) -> None:
        prompt: Sequence[int] = context.tokens.prompt
        token = printed.set(create_buffered_detokenizer(pipeline.tokenizer, prompt))
        try:
            await stream(pipeline, context, on_tokens)
        finally:
            printed.reset(token)

    stream_context.decodes_on = True  # type: ignore[attr-defined]
    generate.stream_context = stream_context
