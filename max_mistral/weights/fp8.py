"""What FP8 weights, once loaded, say of the graph that runs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from max.dtype import DType
from max.graph.weights import WeightData
from max.nn.float8_scale_stacking import can_use_fused_mlp

from ..errors import UserError
from ..model_config import MistralConfig
from ..quantization import BLOCK, FP8, lacks_scaled_product
from .quantized import is_projection

logger = logging.getLogger("max.pipelines")


def quantized_layers(weights: Mapping[str, WeightData]) -> dict[str, set[int]]:
    """Returns the layers in FP8, of ``"self_attn"`` and of ``"mlp"``.

    Args:
        weights: The tensors by their names in the graph.

    Raises:
        UserError: (a ``ValueError``) naming an attention or MLP of which only
            a part is in FP8, which ``max.nn`` cannot run.
    """
    formats: dict[tuple[str, int], set[bool]] = {}
    for name, weight in weights.items():
        if is_projection(name):
            _, number, part, _, _ = name.split(".")
            in_fp8 = weight.dtype == DType.float8_e4m3fn
            formats.setdefault((part, int(number)), set()).add(in_fp8)
    layers: dict[str, set[int]] = {"self_attn": set(), "mlp": set()}
    for (part, layer), found in formats.items():
        if len(found) > 1:
            raise UserError(
                f"Of layers.{layer}.{part} some projections are in FP8 and some "
                "are not; max_mistral runs all or none of them in FP8."
            )
        if found == {True}:
            layers[part].add(layer)
    return layers


def finalize_fp8(
    config: MistralConfig, fp8: FP8, weights: dict[str, WeightData]
) -> dict[str, WeightData]:
    """Tells ``config`` which layers are in FP8 and how; returns the weights for it.

    Args:
        config: The model's, whose ``quant_config`` and ``scaled_by_rows`` are set.
        fp8: What the checkpoint's config says.
        weights: The tensors by their names in the graph.

    Raises:
        UserError: (a ``ValueError``) if only a part of an attention or MLP is in
            FP8, or devices would share a block.
    """
    layers = quantized_layers(weights)
    if not any(layers.values()):
        return weights
    by_rows = fp8.scales != "block" and lacks_scaled_product()
    if by_rows or fp8.scales == "block":
        _check_blocks(config)
    if by_rows:
        logger.info(
            "MAX has no FP8 product with a scale a tensor or a row for this GPU: "
            "the one for blocks runs%s.",
            ", without the checkpoint's scales of activations" if fp8.static else "",
        )
        config.scaled_by_rows = True
        fp8, weights = FP8("channel", static=False), scales_by_rows(weights)
    whole = fp8.scales == "tensor" and not fp8.static
    config.quant_config = fp8.quant_config(
        layers["self_attn"],
        layers["mlp"],
        # Gate and up in one product, but not in ours.
        fuse_mlp=not config.scaled_by_rows
        and can_use_fused_mlp(weights, tensor_wise=whole),
    )
    return weights


def _check_blocks(config: MistralConfig) -> None:
    # max.nn puts the scales of Q, K and V under each other, and of gate and up;
    # MAX's kernel takes whole blocks of columns.
    degree = config.tensor_parallel_degree
    sizes = {
        "query": config.num_attention_heads * config.head_dim,
        "key": config.num_replicated_kv_heads * config.head_dim,
        "MLP": config.feed_forward_length,
    }
    for name, size in sizes.items():
        if size % (degree * BLOCK):
            raise UserError(
                f"The {name} width {size} on {degree} devices is not in whole blocks "
                f"of {BLOCK}, as FP8 needs it on this GPU or in this checkpoint. Use "
                "fewer devices."
            )


def scales_by_rows(weights: Mapping[str, WeightData]) -> dict[str, WeightData]:
    """Returns FP8 weights with a scale a row, and none for the activations."""
    changed = {n: w for n, w in weights.items() if not n.endswith(".input_scale")}
    for name, weight in weights.items():
        if name.endswith(".weight_scale"):
            rows = int(weights[name.removesuffix("_scale")].shape[0])
            scale = weight.to_buffer().to_numpy().reshape(-1, 1)
            wide = np.ascontiguousarray(np.broadcast_to(scale, (rows, 1)))
            changed[name] = WeightData.from_numpy(wide, name)
    return changed
