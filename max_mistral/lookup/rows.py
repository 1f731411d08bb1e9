"""A step's drafts as the graph and the sampler see them: requests of one token.

Each row of a request is given to the graph as a request of its own, whose cache
is one token longer than the row before's and in the same pages. A layer writes
the keys of all rows before any row attends, so a row sees those before it. This
takes no other graph than plain decoding, and the same kernels: an answer is the
same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from max import tree
from max.driver import Buffer
from max.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice
from max.pipelines.context import SamplingParams, TextContext

from ..inputs import MistralInputs

Tokens = npt.NDArray[np.int64]
NO_TOKENS: Tokens = np.empty(0, np.int64)


def with_drafts(inputs: MistralInputs, drafts: Sequence[Tokens]) -> MistralInputs:
    """Returns a step's inputs with a row for each draft.

    Args:
        inputs: On the host, of a step with one token for each request.
        drafts: Each request's, ``[any]``.
    """
    counts = np.array([1 + len(draft) for draft in drafts])
    first = inputs.tokens.to_numpy()
    tokens = [
        np.append(token, draft) for token, draft in zip(first, drafts, strict=True)
    ]
    return replace(
        inputs,
        tokens=Buffer.from_numpy(np.concatenate(tokens).astype(np.int64)),
        input_row_offsets=Buffer.from_numpy(
            np.arange(counts.sum() + 1, dtype=np.uint32)
        ),
        kv_cache_inputs=_caches(inputs.kv_cache_inputs, counts),
    )


def _caches(
    caches: KVCacheInputs[Buffer, Buffer] | None, counts: npt.NDArray[np.int64]
) -> KVCacheInputs[Buffer, Buffer]:
    assert caches is not None
    ahead = np.concatenate([np.arange(count) for count in counts])

    def repeated(cache: KVCacheInputsPerDevice[Buffer, Buffer]) -> object:
        lengths = np.repeat(cache.cache_lengths.to_numpy(), counts)
        lengths += ahead.astype(lengths.dtype)
        pages = np.repeat(cache.lookup_table.to_numpy(), counts, axis=0)
        longest = cache.max_cache_length.to_numpy() + np.uint32(ahead.max())
        return replace(
            cache,
            cache_lengths=Buffer.from_numpy(lengths),
            lookup_table=Buffer.from_numpy(pages),
            max_cache_length=Buffer.from_numpy(longest),
        )

    return tree.map(repeated, caches, leaf=KVCacheInputsPerDevice)


class RowTokens:
    """A request's tokens as they would be before a draft's next one."""

    def __init__(self, context: TextContext, drafts: Tokens) -> None:
        self._tokens = context.tokens
        self._drafts = drafts

    def __len__(self) -> int:
        return len(self._tokens) + len(self._drafts)

    @property
    def all(self) -> Tokens:
        """Prompt, answer and drafts."""
        return np.append(self._tokens.all, self._drafts)

    @property
    def generated(self) -> Tokens:
        """Answer and drafts."""
        return np.append(self._tokens.generated, self._drafts)


@dataclass(frozen=True)
class Row:
    """What MAX's sampler reads of a context, for a row after ``drafts``.

    The seed of a draw is that of the request and how many tokens there are, so a
    row draws what plain decoding would.
    """

    sampling_params: SamplingParams
    tokens: RowTokens
    min_tokens: int = 0

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int32]]:
        """Returns the tokens that ``min_tokens`` forbids, of each step none."""
        return [np.zeros((0, 2), np.int32) for _ in range(num_steps)]


def sampled_rows(
    batch: Sequence[TextContext], drafts: Sequence[Tokens]
) -> list[TextContext | Row]:
    """Returns a context, or what stands for one, for each row of a step."""
    rows: list[TextContext | Row] = []
    for context, draft in zip(batch, drafts, strict=True):
        rows.append(context)
        rows += [
            Row(context.sampling_params, RowTokens(context, draft[:i]))
            for i in range(1, len(draft) + 1)
        ]
    return rows
