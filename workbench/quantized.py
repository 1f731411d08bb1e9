"""Tiny seeded checkpoints in each quantized layout that is published.

The same weights as ``workbench/checkpoints.py`` writes, rounded; beside each file
goes what the rounded weights are worth, by their Hugging Face names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from max.driver import DeviceSpec
from max.pipelines.lib import PipelineConfig
from safetensors.numpy import save_file

from workbench.checkpoints import BASE, make_tensors, to_native, write_tokenizer
from workbench.quantizers import BLOCK, Layout, Tensors, quantize
from workbench.runner import make_pipeline_config

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


def compressed_tensors(
    weights: str, inputs: str, form: str = "float-quantized", **kind: Any
) -> dict[str, Any]:
    """The part of the config that counts, as llm-compressor writes it."""
    kind = {"num_bits": 8, "type": "float", "symmetric": True} | kind
    dynamic = {"tensor": False, "tensor_group": "local"}.get(inputs, True)
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": kind | {"strategy": weights, "dynamic": False},
        "input_activations": kind | {"strategy": inputs, "dynamic": dynamic},
    }
    if weights == "block":
        group["weights"]["block_structure"] = [BLOCK, BLOCK]
        group["input_activations"]["group_size"] = BLOCK
    return {
        "quant_method": "compressed-tensors",
        "format": form,
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
    # llm-compressor's FP8_BLOCK.
    "compressed_block": Layout(
        compressed_tensors("block", "group"), "block", dtype=ml_dtypes.bfloat16
    ),
    "compressed_static": Layout(
        compressed_tensors("tensor", "tensor"),
        "tensor",
        input_scale="input_scale",
        dtype=ml_dtypes.bfloat16,
        scalar=(1,),
    ),
    # Devstral-2-123B-Instruct-2512-NVFP4 of BrainForge; llm-compressor writes it too.
    "nvfp4": Layout(
        compressed_tensors(
            *("tensor_group", "tensor_group", "nvfp4-pack-quantized"),
            num_bits=4,
            group_size=16,
        ),
        "sixteen",
        weight="weight_packed",
        whole_scale="weight_global_scale",
        input_scale="input_global_scale",
        scalar=(1,),
        divisors=True,
        # llm-compressor has one for Q, K and V, and one for gate and up.
        shared=True,
    ),
    # NVIDIA's ModelOpt, as it writes it now and wrote it at first.
    "modelopt_nvfp4": Layout(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        "sixteen",
        input_scale="input_scale",
    ),
    "modelopt_fp8": Layout(
        {
            "producer": {"name": "modelopt", "version": "0.23.0"},
            "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        },
        "tensor",
        input_scale="input_scale",
        standalone=True,
    ),
    # Mistral-7B-Instruct-v0.2-GPTQ of TheBloke.
    "gptq": Layout(GPTQ | {"desc_act": False}, "group", dtype=np.float16),
    "gptq_desc_act": Layout(GPTQ | {"desc_act": True}, "group", dtype=np.float16),
}


NVFP4_LAYOUTS = [n for n, layout in LAYOUTS.items() if layout.scales == "sixteen"]
GPTQ_LAYOUTS = [n for n, layout in LAYOUTS.items() if layout.scales == "group"]
FP8_LAYOUTS = [n for n in LAYOUTS if n not in NVFP4_LAYOUTS + GPTQ_LAYOUTS]


def pipeline(folder: Path, **flags: Any) -> PipelineConfig:
    """Returns the config of a quantized checkpoint on a GPU, with other flags."""
    # MAX reads the encoding off the tensors, but for GPTQ.
    found: dict[str, Any] = {"quantization_encoding": None}
    if '"gptq"' in (folder / "config.json").read_text():
        path = folder / "model.safetensors"
        found = {"quantization_encoding": "gptq", "weight_path": [path]}
    defaults = {"device_specs": [DeviceSpec.accelerator()]}
    return make_pipeline_config(folder, **defaults | found | flags)


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
            parts, value = quantize(name, tensor, layout)
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
    values = dict(config)
    if layout.standalone:
        path = folder / "hf_quant_config.json"
        path.write_text(json.dumps(layout.config))
    else:
        values["quantization_config"] = layout.config
    if layout.scales == "group":
        values["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(values))
    edit(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder, config["vocab_size"])
    return worth
