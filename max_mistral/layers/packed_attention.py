"""Attention on one CPU, by the kernel of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import TensorType, TensorValue, ops
from max.nn.kv_cache import KVCacheParams, PagedCacheValues

from ..kernels import KernelMode
from .packed_ops import CPU, rounds_to_bfloat16


def packed_attention(
    qkv: TensorValue,
    freqs_cis: TensorValue,
    query_scale: TensorValue | None,
    kv_collection: PagedCacheValues,
    layer_idx: TensorValue,
    input_row_offsets: TensorValue,
    *,
    kv_params: KVCacheParams,
    num_heads: int,
    scale: float,
    window: int | None,
    mode: KernelMode,
) -> TensorValue:
    """Returns what our CPU kernel attends to, float32 ``[tokens, heads, head_dim]``.

    One op, where MAX has two: it rotates, stores and attends. MAX's own attention
    reads a key once for each head of queries; ours once.

    Args:
        qkv: float32 ``[tokens, (heads + 2 * kv_heads) * head_dim]``.
        freqs_cis: Rotary cosines and sines, float32 ``[positions, head_dim]``.
        query_scale: float32 ``[tokens]``, what queries are multiplied by, or ``None``.
        kv_collection: The paged KV cache, float32 or bfloat16; this step's keys and
            values are written to it, in an order of their own.
        layer_idx: uint32 scalar, the layer's place in it.
        input_row_offsets: uint32 ``[batch + 1]``.
        kv_params: The cache's parameters.
        num_heads: Heads of queries.
        scale: What ``queries @ keys`` is multiplied by.
        window: How many keys a token sees, itself included; ``None`` for all.
        mode: Which kernels run. Where they round, and the cache is bfloat16, queries
            and weights of values become bfloat16, as keys and values are.
    """
    inputs, parameters = attention_arguments(
        freqs_cis,
        query_scale,
        kv_collection,
        layer_idx,
        input_row_offsets,
        kv_params=kv_params,
        scale=scale,
        window=window,
        mode=mode,
    )
    return ops.inplace_custom(
        "mistral_attention",
        CPU,
        [qkv, *inputs],
        [TensorType(DType.float32, [qkv.shape[0], num_heads, kv_params.head_dim], CPU)],
        parameters=parameters,
    )[0].tensor


def attention_arguments(
    freqs_cis: TensorValue,
    query_scale: TensorValue | None,
    kv_collection: PagedCacheValues,
    layer_idx: TensorValue,
    input_row_offsets: TensorValue,
    *,
    kv_params: KVCacheParams,
    scale: float,
    window: int | None,
    mode: KernelMode,
) -> tuple[list[Any], dict[str, int | bool]]:
    """Returns the inputs of a kernel that attends, and its parameters.

    See :func:`packed_attention` for the arguments.
    """
    scaled = query_scale is not None
    if query_scale is None:
        query_scale = ops.constant(np.ones(1, np.float32), device=CPU)
    inputs = [
        freqs_cis,
        query_scale,
        input_row_offsets,
        kv_collection.kv_blocks,
        kv_collection.cache_lengths,
        kv_collection.lookup_table,
        kv_collection.page_stride,
        layer_idx,
        ops.constant(scale, DType.float32, device=CPU),
    ]
    narrow = kv_params.dtype == DType.bfloat16
    return inputs, {
        "head_dim": kv_params.head_dim,
        "window": 2**31 if window is None else window,
        "scaled": scaled,
        "narrow": narrow and rounds_to_bfloat16(mode),
    }
