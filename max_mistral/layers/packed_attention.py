"""Attention on one CPU, by the kernel of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import TensorType, TensorValue, ops
from max.nn.kv_cache import KVCacheParams

from ..kernels import KernelMode
from .attention_step import AttentionStep
from .packed_ops import CPU, rounds_to_bfloat16


def packed_attention(
    qkv: TensorValue,
    step: AttentionStep,
    *,
    kv_params: KVCacheParams,
    num_heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
    mode: KernelMode,
) -> TensorValue:
    """Returns what our CPU kernel attends to, float32 ``[tokens, heads, head_dim]``.

    One op, where MAX has two: it rotates, stores and attends. MAX's own attention
    reads a key once for each head of queries; ours once for several heads and tokens.

    Args:
        qkv: float32 ``[tokens, (heads + 2 * kv_heads) * head_dim]``.
        step: The rest. The KV cache is float32, bfloat16 or int8, in an order of its
            own.
        kv_params: The cache's parameters.
        num_heads: Heads of queries.
        head_dim: Width of one.
        scale: What ``queries @ keys`` is multiplied by.
        window: How many keys a token sees, itself included; ``None`` for all.
        mode: Which kernels run. Where they round, and the cache is not float32,
            queries and weights of values become bfloat16.
    """
    inputs, parameters = attention_arguments(
        step,
        kv_params=kv_params,
        head_dim=head_dim,
        scale=scale,
        window=window,
        mode=mode,
    )
    return ops.inplace_custom(
        "mistral_attention",
        CPU,
        [qkv, *inputs],
        [TensorType(DType.float32, [qkv.shape[0], num_heads, head_dim], CPU)],
        parameters=parameters,
    )[0].tensor


def attention_arguments(
    step: AttentionStep,
    *,
    kv_params: KVCacheParams,
    head_dim: int,
    scale: float,
    window: int | None,
    mode: KernelMode,
) -> tuple[list[Any], dict[str, int | bool]]:
    """Returns the inputs of a kernel that attends, and its parameters.

    See :func:`packed_attention` for the arguments.
    """
    query_scale = step.query_scale
    if query_scale is None:
        query_scale = ops.constant(np.ones(1, np.float32), device=CPU)
    cache = step.kv_collection
    inputs = [
        step.freqs_cis,
        query_scale,
        step.input_row_offsets,
        cache.kv_blocks,
        cache.cache_lengths,
        cache.lookup_table,
        cache.page_stride,
        step.layer_idx,
        ops.constant(scale, DType.float32, device=CPU),
    ]
    return inputs, {
        "head_dim": head_dim,
        "window": 2**31 if window is None else window,
        "scaled": step.query_scale is not None,
        "rounded_attention": (
            kv_params.dtype != DType.float32 and rounds_to_bfloat16(mode)
        ),
    }
