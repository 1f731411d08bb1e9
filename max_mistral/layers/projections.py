"""A block's attention and MLP, on weights as the checkpoint has them.

Dense ones, FP8 and NVFP4 through ``max.nn``, GPTQ through its ``GPTQLinear``,
packed ones on a CPU through this package's kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from max.dtype import DType
from max.graph.quantization import QuantizationEncoding
from max.nn.attention import AttentionWithRope, MHAMaskVariant
from max.nn.linear import MLP, Linear
from max.nn.quant_config import QuantConfig
from max.nn.rotary_embedding import RotaryEmbedding

from ..model_config import MistralConfig
from ..quantization import GPTQ
from .packed import PackedLinear, PackedMLP, PackedQKV
from .quantized import (
    RowScaledLinear,
    RowScaledQKV,
    SeparateQKV,
    StaticFP8QKV,
    gptq_linear,
)


def make_attention(
    config: MistralConfig, rope: RotaryEmbedding, layer: int
) -> AttentionWithRope:
    """Returns a block's attention.

    Args:
        config: The model's config.
        rope: The rotary embedding that all blocks share.
        layer: Which block.
    """
    quant = config.quant_config
    if quant is not None and layer not in quant.attn_quantized_layers:
        quant = None
    window = config.layer_windows[layer]
    kv_params = config.kv_groups[config.kv_places[layer][0]]
    dtype, device = _weight_dtype(config, quant), config.devices[0]
    # The mask variant and the window only act together: one without the other
    # is silently causal.
    attention = AttentionWithRope(
        rope=rope,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_replicated_kv_heads,
        hidden_size=config.hidden_size,
        kv_params=kv_params,
        devices=config.devices,
        dtype=dtype,
        scale=config.attention_multiplier,
        quant_config=quant,
        linear_cls=_linear_cls(config, quant),
        mask_variant=(
            MHAMaskVariant.CAUSAL_MASK
            if window is None
            else MHAMaskVariant.SLIDING_WINDOW_CAUSAL_MASK
        ),
        sliding_window=window,
    )
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_replicated_kv_heads * config.head_dim
    out_dims = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    hidden = config.hidden_size
    projections: Any = attention
    if encodings := config.layer_encodings(layer):
        projections.qkv_proj = PackedQKV(
            {
                name: PackedLinear(hidden, out_dim, encodings[name])
                for name, out_dim in out_dims.items()
            }
        )
        projections.o_proj = PackedLinear(queries, hidden, encodings["o_proj"])
    elif isinstance(config.quantization, GPTQ):
        linear = partial(gptq_linear, config.quantization, dtype=dtype, device=device)
        projections.qkv_proj = SeparateQKV(
            {name: linear(hidden, out_dim) for name, out_dim in out_dims.items()}
        )
        projections.o_proj = linear(queries, hidden)
    elif quant is not None and config.separate_qkv:
        linear = partial(
            _linear_cls(config, quant), dtype=dtype, device=device, quant_config=quant
        )
        projections.qkv_proj = SeparateQKV(
            {name: linear(hidden, out_dim) for name, out_dim in out_dims.items()}
        )
    elif quant is not None and (stacked := _stacked_cls(config, quant)):
        sizes, names = list(out_dims.values()), list(out_dims)
        projections.qkv_proj = stacked(
            hidden, sizes, names, dtype, device, quant_config=quant
        )
    return attention


def make_mlp(config: MistralConfig, layer: int) -> MLP | PackedMLP:
    """Returns a block's SwiGLU.

    Args:
        config: The model's config.
        layer: Which block.
    """
    hidden, wide = config.hidden_size, config.feed_forward_length
    if encodings := config.layer_encodings(layer):
        return PackedMLP(hidden, wide, encodings)
    if isinstance(config.quantization, GPTQ):
        return MLP(
            config.dtype,
            QuantizationEncoding.GPTQ,
            hidden,
            wide,
            config.devices,
            linear_cls=partial(gptq_linear, config.quantization),
        )
    quant = config.quant_config
    if quant is not None and layer not in quant.mlp_quantized_layers:
        quant = None
    return MLP(
        _weight_dtype(config, quant),
        None,
        hidden,
        wide,
        config.devices,
        linear_cls=_linear_cls(config, quant),
        quant_config=quant,
    )


def _weight_dtype(config: MistralConfig, quant: QuantConfig | None) -> DType:
    if quant is None:
        return config.dtype
    return DType.uint8 if quant.is_nvfp4 else DType.float8_e4m3fn


def _linear_cls(config: MistralConfig, quant: QuantConfig | None) -> type[Linear]:
    by_rows = quant is not None and config.scaled_by_rows
    return RowScaledLinear if by_rows else Linear


def _stacked_cls(
    config: MistralConfig, quant: QuantConfig
) -> type[RowScaledQKV | StaticFP8QKV] | None:
    """Which class Q, K and V need that is not ``max.nn``'s."""
    if config.scaled_by_rows:
        return RowScaledQKV
    return StaticFP8QKV if quant.is_static and not quant.is_nvfp4 else None
