"""Grammars and prompts that are read in pieces, which MAX 26.7 confuses on a CPU."""

from __future__ import annotations

from typing import Any

from max.pipelines.lib.pipeline_variants import text_generation


def let_grammars_wait() -> None:
    """Keeps a grammar where it is while a prompt is read in pieces.

    After each piece MAX's pipeline for CPUs moves the grammar on by a token that
    is sampled and thrown away, so that an answer would lack its beginning. (The
    pipeline with the overlap scheduler does not.)
    """
    finish_step: Any = text_generation.update_context_and_prepare_responses
    if getattr(finish_step, "lets_grammars_wait", False):
        return

    def finish_step_without_grammars(
        tokens: Any, flat_batch: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        waiting = [
            (context, context.matcher)
            for context in flat_batch
            if context.tokens.actively_chunked
        ]
        for context, _ in waiting:
            context.set_matcher(None)
        try:
            return finish_step(tokens, flat_batch, *args, **kwargs)
        finally:
            for context, matcher in waiting:
                context.set_matcher(matcher)

    finish_step_without_grammars.lets_grammars_wait = True  # type: ignore[attr-defined]
    module: Any = text_generation
    module.update_context_and_prepare_responses = finish_step_without_grammars
