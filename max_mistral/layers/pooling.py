"""From hidden states to one embedding of each text."""

from __future__ import annotations

from collections.abc import Callable

from max.dtype import DType
from max.graph import TensorValue, ops

# As in torch's ``normalize``: what an embedding of zeros is divided by.
_LEAST_LENGTH = 1e-12


def pool_last(
    norm: Callable[[TensorValue], TensorValue],
    hs: TensorValue,
    input_row_offsets: TensorValue,
) -> TensorValue:
    """Returns each text's last hidden state, of length 1.

    Args:
        norm: The model's final norm.
        hs: Hidden states, ``[total_seq_len, hidden_size]``.
        input_row_offsets: uint32 ``[batch + 1]``.

    Returns:
        float32 ``[batch, hidden_size]``.
    """
    last = input_row_offsets[1:].cast(DType.int64) - 1
    states = norm(ops.gather(hs, last, axis=0)).cast(DType.float32)
    length = ops.sqrt(ops.sum(states * states, axis=-1))
    return states / ops.max(
        length, ops.constant(_LEAST_LENGTH, DType.float32, length.device)
    )
