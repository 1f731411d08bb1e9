"""What weights in FP8 and NVFP4, once loaded, say of the graph that runs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from max.graph.weights import WeightData
from max.nn.float8_scale_stacking import can_use_fused_mlp
from max.nn.quant_config import NVFP4_BLOCK_SIZE

from ..errors import UserError
from ..model_config import MistralConfig
from ..quantization import BLOCK, FP8, NVFP4, Scaled, lacks_scaled_product
from .quantized import SCALED, is_projection

logger = logging.getLogger("max.pipelines")


def quantized_layers(weights: Mapping[str, WeightData]) -> dict[str, set[int]]:
    """Returns the quantized layers, of ``"self_attn"`` and of ``"mlp"``.

    Args:
        weights: The tensors by their names in the graph.

    Raises:
        UserError: (a ``ValueError``) naming an attention or MLP of which only
            a part is quantized, which ``max.nn`` cannot run.
    """
    formats: dict[tuple[str, int], set[bool]] = {}
    for name, weight in weights.items():
        if is_projection(name):
            _, number, part, _, _ = name.split(".")
            formats.setdefault((part, int(number)), set()).add(weight.dtype in SCALED)
    layers: dict[str, set[int]] = {"self_attn": set(), "mlp": set()}
    for (part, layer), found in formats.items():
        if len(found) > 1:
            raise UserError(
                f"Of layers.{layer}.{part} some projections are quantized and some "
                "are not; max_mistral runs all or none of them so."
            )
        if found == {True}:
            layers[part].add(layer)
    return layers


def finalize_scaled(
    config: MistralConfig, quantization: Scaled, weights: dict[str, WeightData]
) -> dict[str, WeightData]:
    """Tells ``config`` which layers are quantized and how; returns the weights for it.

    Args:
        config: The model's, whose ``quant_config``, ``scaled_by_rows`` and
            ``separate_qkv`` are set.
        quantization: What the checkpoint's config says.
        weights: The tensors by their names in the graph.

    Raises:
        UserError: (a ``ValueError``) if only a part of an attention or MLP is
            quantized, or devices would share a block.
    """
    layers = quantized_layers(weights)
    if not any(layers.values()):
        return weights
    if isinstance(quantization, NVFP4):
        config.separate_qkv = not _qkv_have_one_scale(weights)
    elif quantization.scales != "block" and lacks_scaled_product():
        logger.info(
            "MAX has no FP8 product with a scale a tensor or a row for this GPU: "
            "the one for blocks runs%s.",
            ", without the checkpoint's scales of activations"
            if quantization.static
            else "",
        )
        config.scaled_by_rows = True
        quantization, weights = FP8("channel", static=False), scales_by_rows(weights)
    _check_blocks(config, quantization)
    config.quant_config = quantization.quant_config(
        layers["self_attn"],
        layers["mlp"],
        # Gate and up in one product, but not in ours.
        fuse_mlp=not config.scaled_by_rows
        and can_use_fused_mlp(
            weights, tensor_wise=quantization == FP8("tensor", static=False)
        ),
    )
    return weights


def _qkv_have_one_scale(weights: Mapping[str, WeightData]) -> bool:
    # One product of Q, K and V has one scale of each kind; max.nn takes the
    # largest of the three, whatever the others are.
    for name, scale in weights.items():
        if name.endswith((".q_proj.weight_scale_2", ".q_proj.input_scale")):
            for other in (".k_proj.", ".v_proj."):
                alike = weights[name.replace(".q_proj.", other)]
                if alike.to_buffer().item() != scale.to_buffer().item():
                    return False
    return True


def _check_blocks(config: MistralConfig, quantization: Scaled) -> None:
    degree = config.tensor_parallel_degree
    sizes = {
        "query": config.num_attention_heads * config.head_dim,
        "MLP": config.feed_forward_length,
    }
    if isinstance(quantization, NVFP4):
        # MAX's kernel reads the scales of four groups of columns together, and
        # fills up the last four: not where the next device's begin.
        block = 4 * NVFP4_BLOCK_SIZE if degree > 1 else 1
    else:
        # max.nn puts the scales of Q, K and V under each other, and of gate and
        # up; MAX's kernel takes whole blocks of columns.
        block = BLOCK if config.scaled_by_rows or quantization.scales == "block" else 1
        sizes["key"] = config.num_replicated_kv_heads * config.head_dim
    for name, size in sizes.items():
        if block > 1 and size % (degree * block):
            mend = "Use fewer" if degree > 1 else "Run its bfloat16 checkpoint on such"
            raise UserError(
                f"The {name} width {size} on {degree} devices is not in whole blocks "
                f"of {block}, as the quantized weights need it on this GPU or in this "
                f"checkpoint. {mend} devices."
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
