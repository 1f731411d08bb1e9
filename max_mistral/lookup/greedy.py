"""The likeliest token without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

# What MAX's sampler takes where there are no grammars, penalties and the like: logits,
# tokens so far, top_k, max_k, temperature, top_p, min_top_p, min_p, seed.
_PLAIN = 9
# NumPy has one thread.
_MOST_LOGITS = 2**20


def greedy_tokens(
    logits: Buffer, vocab_size: int | None
) -> npt.NDArray[np.int64] | None:
    """Returns each row's likeliest token, ``[rows]``; ``None`` of too many logits.

    Args:
        logits: ``[rows, vocab_size or more]``, in host memory.
        vocab_size: Logits from there on are padding, which MAX's sampler leaves out
            too.

    NumPy finds them in microseconds, in the thread that has the logits. After a graph
    this thread has to wait for a CPU, on which MAX's others look out for more work: a
    tick of the operating system's clock now and then, as long as a small model's step.
    """
    if logits.num_elements > _MOST_LOGITS:
        return None
    return logits.to_numpy()[:, :vocab_size].argmax(axis=-1)


class GreedySampler:
    """MAX's sampler, but for steps whose rows all take their likeliest token.

    Args:
        sampler: The ``execute`` of MAX's sampler, on the host; a call of the model
            itself would build a signature each time.
        vocab_size: How many tokens it chooses from; ``None`` for all.
    """

    def __init__(
        self, sampler: Callable[..., Sequence[Buffer]], vocab_size: int | None
    ) -> None:
        self._sampler = sampler
        self._vocab_size = vocab_size

    def __call__(self, *inputs: Buffer) -> Sequence[Buffer]:
        """Returns the new tokens ``[batch]``, all tokens so far, and the seeds."""
        logits, before, top_k = inputs[:3]
        plain = len(inputs) == _PLAIN and (top_k.to_numpy() == 1).all()
        tokens = greedy_tokens(logits, self._vocab_size) if plain else None
        if tokens is None:
            return self._sampler(*inputs)
        so_far = np.concatenate([before.to_numpy(), tokens[:, None]], axis=1)
        return [Buffer.from_numpy(tokens), Buffer.from_numpy(so_far), inputs[-1]]
