"""Tiny seeded checkpoints in each quantized layout that is published.

The same weights as ``tests/checkpoints.py`` writes, rounded; beside each file
goes what the rounded weights are worth, by their Hugging Face names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tests.checkpoints import BASE, make_tensors, to_native, write_tokenizer

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

FP8 = ml_dtypes.float8_e4m3fn
FP8_MAX = float(ml_dtypes.finfo(FP8).max)
BLOCK = 128

# Whole blocks and groups of 128.
CONFIG: dict[str, Any] = BASE | {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "dtype": "bfloat16",
}


@dataclass(frozen=True)
class Layout:
    """How a quantized checkpoint is written.

    Args:
        config: Its ``quantization_config``.
        scales: One scale a "tensor", a "channel" or a "block"; "group" is GPTQ.
        weight_scale: What the weight's scale is called.
        input_scale: What the activations' scale is called, if there is one.
        dtype: Of the scales.
        scalar: The shape of a single scale.
        native: Whether names and rotary order are Mistral's own.
    """

    config: dict[str, Any]
    scales: str
    weight_scale: str = "weight_scale"
    input_scale: str | None = None
    dtype: Any = np.float32
    scalar: tuple[int, ...] = ()
    native: bool = False


def compressed_tensors(weights: str, inputs: str) -> dict[str, Any]:
    """The part of the config that counts, as llm-compressor writes it."""
    kind = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": kind | {"strategy": weights, "dynamic": False},
        "input_activations": kind | {"strategy": inputs, "dynamic": inputs == "token"},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


STATIC = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "weight_block_size": None,
    "modules_to_not_convert": ["lm_head"],
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}

LAYOUTS = {
    # Ministral 3, Devstral 2, Medium 3.5 of mistralai.
    "static": Layout(
        STATIC, "tensor", "weight_scale_inv", "activation_scale", ml_dtypes.bfloat16
    ),
    # The same in Mistral's own format, after max_mistral.prepare.
    "native": Layout(
        STATIC,
        "tensor",
        "qscale_weight",
        "qscale_act",
        ml_dtypes.bfloat16,
        native=True,
    ),
    # Hugging Face's fp8, as of DeepSeek.
    "block": Layout(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "block",
        "weight_scale_inv",
    ),
    # Mistral-7B-Instruct-v0.3-FP8 of neuralmagic.
    "autofp8": Layout(
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
        },
        "tensor",
        input_scale="input_scale",
        scalar=(1,),
    ),
    "autofp8_dynamic": Layout(
        {"quant_method": "fp8", "activation_scheme": "dynamic"}, "tensor", scalar=(1,)
    ),
    # Mistral-Small-24B-Instruct-2501-FP8-dynamic of RedHatAI.
    "channel": Layout(
        compressed_tensors("channel", "token"), "channel", dtype=ml_dtypes.bfloat16
    ),
    "compressed_static": Layout(
        compressed_tensors("tensor", "tensor"),
        "tensor",
        input_scale="input_scale",
        dtype=ml_dtypes.bfloat16,
        scalar=(1,),
    ),
    # Mistral-7B-Instruct-v0.2-GPTQ of TheBloke.
    "gptq": Layout(GPTQ | {"desc_act": False}, "group", dtype=np.float16),
    "gptq_desc_act": Layout(GPTQ | {"desc_act": True}, "group", dtype=np.float16),
}


def write_quantized(
    folder: Path,
    layout: Layout,
    config: dict[str, Any] | None = None,
    dense: Callable[[str], bool] = lambda name: False,
    edit: Callable[[Tensors], object] = lambda stored: None,
) -> Tensors:
    """Writes a checkpoint; returns its weights in float32, by HF's names.

    Args:
        folder: Where to.
        layout: How.
        config: The model's; :data:`CONFIG` by default.
        dense: Which projections are left as they are.
        edit: Changes the tensors, by their names in the file, before they are
            written.
    """
    config = CONFIG if config is None else config
    worth = make_tensors(config)
    stored: Tensors = {}
    for name, tensor in worth.items():
        if name.endswith("_proj.weight") and not dense(name):
            if layout.scales == "group":
                parts, value = _gptq(name, tensor, bool(layout.config["desc_act"]))
            else:
                parts, value = _fp8(name, tensor, layout)
        else:
            kept = np.float16 if layout.scales == "group" else ml_dtypes.bfloat16
            parts = {name: tensor.astype(kept)}
            # What a float16 is worth in a bfloat16 model.
            value = parts[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        worth[name] = value
        stored |= parts
    if layout.native:
        weights = {name: stored.pop(name) for name in worth}
        native = to_native(config, weights)
        spelling = dict(zip(weights, native, strict=True))
        stored = native | {
            spelling[name.rpartition(".")[0] + ".weight"].removesuffix("weight")
            + name.rpartition(".")[2]: scale
            for name, scale in stored.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    values = config | {"quantization_config": layout.config}
    if layout.scales == "group":
        values["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(values))
    edit(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder, config["vocab_size"])
    return worth


def _fp8(name: str, tensor: Array, layout: Layout) -> tuple[Tensors, Array]:
    rows, columns = tensor.shape
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "block": (BLOCK, BLOCK),
    }[layout.scales]
    blocks = tensor.reshape(rows // height, height, columns // width, width)
    scales = np.abs(blocks).max(axis=(1, 3)) / FP8_MAX
    scales = scales.astype(layout.dtype).astype(np.float32)
    wide = scales.repeat(height, axis=0).repeat(width, axis=1)
    # A scale rounded down could push the largest weight past the format's end.
    rounded = np.clip(tensor / wide, -FP8_MAX, FP8_MAX).astype(FP8)
    stem = name.removesuffix("weight")
    shape = layout.scalar if layout.scales == "tensor" else scales.shape
    parts = {
        name: rounded,
        stem + layout.weight_scale: scales.astype(layout.dtype).reshape(shape),
    }
    if layout.input_scale is not None:
        scale = np.full(layout.scalar, 0.05, layout.dtype)
        parts[stem + layout.input_scale] = scale
    return parts, rounded.astype(np.float32) * wide


def _gptq(name: str, tensor: Array, desc_act: bool) -> tuple[Tensors, Array]:
    rows, columns = tensor.shape
    groups = np.arange(columns) // BLOCK
    if desc_act:
        groups = np.random.default_rng(2).permutation(groups)
    kinds = range(columns // BLOCK)
    largest = [np.abs(tensor[:, groups == kind]).max(axis=1) for kind in kinds]
    scales = (np.stack(largest) / 7).astype(np.float16)
    by_column = scales.astype(np.float32)[groups].T
    codes = np.clip(np.rint(tensor / by_column) + 8, 0, 15).astype(np.uint32)
    # [rows, columns] -> [columns / 8, 8, rows], the first column in the lowest bits
    eights = codes.T.reshape(columns // 8, 8, rows)
    shifts = (4 * np.arange(8, dtype=np.uint32))[None, :, None]
    packed = np.ascontiguousarray((eights << shifts).sum(axis=1, dtype=np.uint32))
    # AutoGPTQ writes the zero point less one: 7 in every 4 bits.
    zeros = np.full((len(scales), rows // 8), 0x77777777, np.int32)
    stem = name.removesuffix("weight")
    parts = {
        stem + "qweight": packed.view(np.int32),
        stem + "qzeros": zeros,
        stem + "scales": scales,
        stem + "g_idx": groups.astype(np.int32),
        stem + "bias": np.zeros(rows, np.float16),
    }
    return parts, (codes.astype(np.float32) - 8) * by_column
