"""Log-probabilities on a CPU, without a graph: to compile one takes half a minute.

A stand-in for what MAX compiles of ``log_probabilities_ragged_graph``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

# Of each token the likeliest, and the one that was chosen: as many as MAX's graph has.
TOP = 7
# Logits of which the largest is found first.
_BLOCK = 256

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]


class HostScores:
    """Has the one method that MAX calls of its graph."""

    def execute(
        self,
        logits: Buffer,
        tokens: Buffer,
        sampled_tokens: Buffer,
        logit_row_offsets: Buffer,
        token_row_offsets: Buffer,
        output_row_offsets: Buffer,
        _: Buffer,
    ) -> tuple[Buffer, Buffer]:
        """Scores the last rows of each request, or all of them where it echoes.

        Args:
            logits: float32 ``[rows, vocab_size]``.
            tokens: uint32 ``[tokens]``, of all requests.
            sampled_tokens: uint32 ``[batch]``, which follow them.
            logit_row_offsets: uint32 ``[batch + 1]``: where each request's rows
                begin, and the end.
            token_row_offsets: The same of ``tokens``.
            output_row_offsets: The same of the results.

        Returns:
            Log-probabilities, float32 ``[outputs, 8]``, and of which tokens they are,
            uint32: the seven likeliest in any order, then the one that follows. Where
            there are fewer, ``vocab_size`` stands for a token.
        """
        rows = logits.to_numpy()
        outputs = output_row_offsets.to_numpy().astype(np.int64)
        scores = np.full((outputs[-1], TOP + 1), -np.inf, np.float32)
        ids = np.full(scores.shape, rows.shape[1], np.uint32)
        logit_ends = logit_row_offsets.to_numpy()[1:].astype(np.int64)
        requests = zip(
            np.split(np.arange(outputs[-1]), outputs[1:-1]),
            logit_ends,
            _following(tokens, sampled_tokens, token_row_offsets),
            strict=True,
        )
        for places, end, following in requests:
            for i, place in enumerate(places):
                row = rows[end - len(places) + i]
                chosen = following[len(following) - len(places) + i]
                found = np.append(top_ids(row, TOP), chosen)
                scores[place, -len(found) :] = log_softmax(row, found)
                ids[place, -len(found) :] = found
        return Buffer.from_numpy(scores), Buffer.from_numpy(ids)


def _following(
    tokens: Buffer, sampled_tokens: Buffer, token_row_offsets: Buffer
) -> Iterator[Ids]:
    """Yields, of each request, the token that follows each of its tokens."""
    inner = token_row_offsets.to_numpy()[1:-1].astype(np.int64)
    sampled = sampled_tokens.to_numpy()
    for part, last in zip(np.split(tokens.to_numpy(), inner), sampled, strict=True):
        yield np.append(part[1:], last)


def log_softmax(row: Floats, ids: npt.NDArray[np.integer]) -> Floats:
    """Returns the log-probabilities of some tokens under a row of logits."""
    largest = row.max()
    total = np.exp(row - largest).sum(dtype=np.float64)
    scores: Floats = (row[ids] - largest - np.log(total)).astype(np.float32)
    return scores


def top_ids(row: Floats, count: int) -> npt.NDArray[np.int64]:
    """Returns the ids of the ``count`` largest logits, or of all, in any order.

    They are in the ``count`` blocks with the largest maxima.
    """
    if len(row) <= count:
        return np.arange(len(row))
    starts = np.arange(0, len(row), _BLOCK)
    maxima = np.maximum.reduceat(row, starts)
    if len(maxima) > count:
        starts = starts[np.argpartition(maxima, -count)[-count:]]
    ids = (starts[:, None] + np.arange(_BLOCK)).reshape(-1)
    ids = ids[ids < len(row)]
    return ids[np.argpartition(row[ids], -count)[-count:]]
