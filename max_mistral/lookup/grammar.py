"""Grammars and drafts: what each row of a step may be, and where a draft ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.pipelines.context import TextContext
from max.pipelines.lib.pipeline_variants.utils import StructuredOutputHelper

from .rows import Tokens

Mask = npt.NDArray[np.int32]


def masks_of_rows(
    helper: StructuredOutputHelper,
    batch: Sequence[TextContext],
    drafts: Sequence[Tokens],
) -> tuple[Mask, list[Tokens]]:
    """Returns a mask for each row, and the drafts as far as grammars allow them.

    Args:
        helper: Of the pipeline, which has made each grammar's matcher.
        batch: The requests of a step.
        drafts: Each request's, ``[any]``.

    Returns:
        A bit for each token, ``[rows, ceil(vocab_size / 32)]``, and the drafts.
    """
    masks, kept = [], []
    for context, draft in zip(batch, drafts, strict=True):
        mask = helper.allocate_bitmask(1 + len(draft))
        helper.update_context(context, mask, 0)
        if context.matcher is not None and len(draft):
            draft = draft[: _walk(helper, context, draft, mask)]
        masks.append(mask[: 1 + len(draft)])
        kept.append(draft)
    return np.concatenate(masks), kept


def _walk(
    helper: StructuredOutputHelper, context: TextContext, draft: Tokens, mask: Mask
) -> int:
    """Fills the masks of a draft's rows; returns how much of it is allowed."""
    matcher, state = context.matcher, context.snapshot_grammar_state()
    assert matcher is not None
    context.set_matcher(matcher.deep_copy())
    try:
        for i, token in enumerate(draft.tolist()):
            # A model may have tokens that its tokenizer, and so a mask, has not.
            known = token < 32 * mask.shape[1]
            if not known or not mask[i, token // 32] >> token % 32 & 1:
                return i
            context.advance_fsm(token)
            helper.fill_bitmask(context, mask, i + 1)
        return len(draft)
    finally:
        context.set_matcher(matcher)
        context.restore_grammar_state(state)
