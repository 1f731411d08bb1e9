"""Ministral 3's queries, scaled by their position."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorValue, ops


def query_scale(
    tokens: TensorValue,
    input_row_offsets: TensorValue,
    cache_lengths: TensorValue,
    beta: float,
    original_max_position: int,
) -> TensorValue:
    """Returns ``1 + beta * ln(1 + floor(position / original_max_position))``.

    HF ``modeling_ministral3.py``, ``get_llama_4_attn_scale``. Exactly 1 for
    positions below ``original_max_position``.

    Args:
        tokens: ``[total_seq_len]``; only its length counts.
        input_row_offsets: uint32 ``[batch + 1]``.
        cache_lengths: uint32 ``[batch]``, the tokens already in the cache.
        beta: ``llama_4_scaling_beta``.
        original_max_position: ``original_max_position_embeddings``.

    Returns:
        float32 ``[total_seq_len]``.
    """
    offsets = input_row_offsets.cast(DType.int64)
    starts, ends = offsets[:-1], offsets[1:]
    total = tokens.shape[0]
    index = ops.range(
        0,
        ops.shape_to_tensor([total])[0],
        1,
        out_dim=total,
        dtype=DType.int64,
        device=tokens.device,
    )
    # The request of each token: how many requests end at or before it.
    # (A repeat_interleave would say it shorter, but not on a GPU.)
    ended = ops.greater_equal(ops.unsqueeze(index, -1), ops.unsqueeze(ends, 0))
    # [total_seq_len, batch] -> [total_seq_len]
    request = ops.squeeze(ops.sum(ended.cast(DType.int64), axis=-1), -1)
    shift = cache_lengths.cast(DType.int64).rebind(starts.shape) - starts
    position = (index + ops.gather(shift, request, axis=0)).cast(DType.float32)
    return (
        ops.log(ops.floor(position / float(original_max_position)) + 1.0) * beta + 1.0
    )
