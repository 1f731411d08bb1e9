"""Attention: on packed weights by our kernel, with scaled queries (Ministral 3)."""

from __future__ import annotations

from typing import Any

from max.dtype import DType
from max.graph import TensorValue, ops
from max.nn.attention import AttentionWithRope
from max.nn.kernels import flash_attention_ragged, rope_split_store_ragged
from max.nn.kv_cache import PagedCacheValues

from .packed import CPU, Activations, PackedLinear


def attend(
    attention: AttentionWithRope,
    layer_idx: TensorValue,
    x: Activations,
    kv_collection: PagedCacheValues,
    freqs_cis: TensorValue,
    input_row_offsets: TensorValue,
    query_scale: TensorValue | None,
) -> TensorValue:
    """Runs ``attention``'s projections around attention.

    ``AttentionWithRope`` has no place between RoPE and the attention itself,
    where the scale belongs, calls MAX's own kernel, and has queries of the
    activations' dtype, while MAX's kernel wants the KV cache's; where none of
    these matters it runs as it is.

    Args:
        attention: Holds the weights and says which mask to use.
        layer_idx: uint32 scalar, the layer's place in the KV cache.
        x: ``[total_seq_len, hidden_size]``.
        kv_collection: The paged KV cache; keys and values are written to it.
        freqs_cis: Rotary cosines and sines, ``[positions, head_dim]``.
        input_row_offsets: uint32 ``[batch + 1]``.
        query_scale: float32 ``[total_seq_len]`` from :func:`query_scale`, or
            ``None``.

    Returns:
        ``[total_seq_len, hidden_size]``.
    """
    packed = isinstance(attention.o_proj, PackedLinear)
    cache_dtype = attention.kv_params.dtype
    plain = query_scale is None and not packed
    if plain and isinstance(x, TensorValue) and cache_dtype == x.dtype:
        return attention(
            layer_idx,
            x,
            kv_collection,
            freqs_cis=freqs_cis,
            input_row_offsets=input_row_offsets,
        )
    qkv_proj: Any = attention.qkv_proj
    qkv = qkv_proj(x)
    queries = rope_split_store_ragged(
        kv_params=attention.kv_params,
        qkv=qkv,
        input_row_offsets=input_row_offsets,
        freqs_cis=ops.cast(freqs_cis, qkv.dtype),
        kv_collection=kv_collection,
        layer_idx=layer_idx,
        n_heads=attention.n_heads,
        interleaved=attention.rope.interleaved,
    )
    # [total_seq_len, heads * head_dim] -> [total_seq_len, heads, head_dim]
    queries = queries.reshape((-1, attention.n_heads, attention.kv_params.head_dim))
    if query_scale is not None:
        scale = ops.cast(query_scale, queries.dtype)
        # [total_seq_len] -> [total_seq_len, 1, 1]
        queries *= ops.unsqueeze(ops.unsqueeze(scale, -1), -1)
    window = attention.sliding_window
    if packed:
        attended = packed_attention(
            queries,
            kv_collection,
            layer_idx,
            input_row_offsets,
            attention.scale,
            window,
        )
    else:
        attended = flash_attention_ragged(
            attention.kv_params,
            input=ops.cast(queries, cache_dtype),
            kv_collection=kv_collection,
            layer_idx=layer_idx,
            input_row_offsets=input_row_offsets,
            mask_variant=attention.mask_variant,
            scale=attention.scale,
            local_window_size=-1 if window is None else window,
            output_dtype=qkv.dtype,
        )
    # [total_seq_len, heads, head_dim] -> [total_seq_len, heads * head_dim]
    attended = attended.reshape((qkv.shape[0], attention.q_weight_dim))
    return attention.o_proj(attended)


def packed_attention(
    queries: TensorValue,
    kv_collection: PagedCacheValues,
    layer_idx: TensorValue,
    input_row_offsets: TensorValue,
    scale: float,
    window: int | None,
) -> TensorValue:
    """Returns causal attention's output, float32 ``[tokens, heads, head_dim]``.

    MAX's own kernel reads a key once for each head of queries; ours once.

    Args:
        queries: float32 ``[tokens, heads, head_dim]``.
        kv_collection: The paged KV cache, float32, with this step's keys.
        layer_idx: uint32 scalar, the layer's place in it.
        input_row_offsets: uint32 ``[batch + 1]``.
        scale: What ``queries @ keys`` is multiplied by.
        window: How many keys a token sees, itself included; ``None`` for all.
    """
    return ops.inplace_custom(
        "mistral_attention",
        CPU,
        [
            queries,
            input_row_offsets,
            kv_collection.kv_blocks,
            kv_collection.cache_lengths,
            kv_collection.lookup_table,
            kv_collection.page_stride,
            layer_idx,
            ops.constant(scale, DType.float32, device=CPU),
        ],
        [queries.type],
        parameters={
            "head_dim": int(queries.shape[2]),
            "window": 2**31 if window is None else window,
        },
    )[0].tensor


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
