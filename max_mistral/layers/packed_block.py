"""A whole decoder block on packed weights, for one CPU, in one operation.

Threads wait for each other between operations, and a small block has little else to
do: one by one they made a token of a model of 300M a tenth slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from .attention import MistralAttention
from .attention_step import AttentionStep
from .packed import PackedLinear, PackedMLP, PackedNorm, are_alike
from .packed_attention import attention_arguments
from .packed_ops import CPU, kinds_of


def packed_block(
    x: TensorValue,
    attention: MistralAttention,
    mlp: PackedMLP,
    norms: Sequence[PackedNorm],
    step: AttentionStep,
    last_tokens: TensorValue,
) -> TensorValue:
    """Maps hidden states to hidden states; writes keys and values to the cache.

    Args:
        x: float32 ``[tokens, hidden_size]``.
        attention: The block's.
        mlp: The block's.
        norms: What comes before each.
        step: What attention takes beside.
        last_tokens: uint32 scalar, of how many of each request's last tokens the
            output is wanted. The operations one by one compute all.

    Returns:
        As ``x``; rows that are not wanted may be anything.
    """
    qkv: list[PackedLinear] = attention.qkv_proj.projections
    layers = [*qkv, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if not (are_alike(qkv) and are_alike([mlp.gate_proj, mlp.up_proj])):
        x = x + attention.o_proj(attention(norms[0](x), step))
        return x + mlp(norms[1](x))
    (epsilon,) = {norm.eps for norm in norms}
    (mode,) = {layer.mode for layer in layers}
    inputs, parameters = attention_arguments(
        step,
        kv_params=attention.kv_params,
        head_dim=attention.head_dim,
        scale=attention.scale,
        window=attention.window,
        mode=mode,
    )
    return ops.inplace_custom(
        "mistral_block",
        CPU,
        [
            x,
            *inputs,
            last_tokens,
            *(norm.weight for norm in norms),
            ops.constant(epsilon, DType.float32, device=CPU),
            ops.constant(
                np.array([layer.out_dim for layer in layers], np.int64), device=CPU
            ),
            *(layer.weight for layer in layers),
        ],
        [TensorType(DType.float32, x.shape, CPU)],
        parameters=parameters
        | {
            "kinds": kinds_of([layer.encoding for layer in layers]),
            "portable": mode == "portable",
            "rounded": _bits([layer.rounded for layer in layers]),
            "amx": _bits([layer.amx for layer in layers]),
        },
    )[0].tensor


def _bits(flags: Sequence[bool]) -> int:
    return sum(flag << i for i, flag in enumerate(flags))
