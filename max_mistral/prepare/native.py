"""Mistral's own format: ``params.json`` beside ``consolidated*.safetensors``.

Sources: ``args.py`` and ``transformer.py`` of mistral-inference, and what
``convert_mistral_weights_to_hf.py`` and ``convert_ministral3_weights_to_hf.py``
of Hugging Face make of the files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..weights.safetensors_file import stored_tensors
from ..weights.stored import Stored

PARAMS = "params.json"

# What a file without a length was trained for: 7B, Codestral, Mathstral, Large.
_DEFAULT_CONTEXT = 32768

_RENAMED = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_OPTIONAL = (
    "head_dim",
    "n_kv_heads",
    "rope_theta",
    "sliding_window",
    "_sliding_window",
    "max_position_embeddings",
    "max_seq_len",
    "tied_embeddings",
    "yarn",
    "llama_4_scaling",
    "quantization",
)
# Nothing in the text model's maths depends on these.
_IRRELEVANT = ("max_batch_size", "model_parallel", "dtype", "vision_encoder")
# Anything but these values is another model.
_FIXED = {"model_type": "transformer", "activation": "silu", "causal": True}
_YARN = {
    "factor",
    "original_max_position_embeddings",
    "beta",
    "alpha",
    "apply_scale",
}


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Returns the tensors in the ``consolidated*.safetensors`` of ``folder``.

    Raises:
        UserError: (a ``ValueError``) naming the shards of a numbered series
            that are not there, or the truncated file.
    """
    shards = sorted(folder.glob("consolidated*.safetensors"))
    counts = {
        int(match[1])
        for shard in shards
        if (match := re.fullmatch(r"consolidated-\d+-of-(\d+)", shard.stem))
    }
    for count in counts:
        series = [
            f"consolidated-{i:05d}-of-{count:05d}.safetensors"
            for i in range(1, count + 1)
        ]
        missing = [name for name in series if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"{folder} lacks {', '.join(missing)}. Fetch the rest of the "
                "checkpoint."
            )
    return stored_tensors(shards)


def link_shards(tensors: Mapping[str, Stored], folder: Path) -> None:
    """Links the tensors' files into ``folder`` under names that MAX looks for.

    MAX passes over files whose name has "consolidated" in it.
    """
    shards = sorted({stored.path for stored in tensors.values()})
    if len(shards) == 1:
        os.symlink(shards[0].resolve(), folder / "model.safetensors")
        return
    links = {
        shard: f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i, shard in enumerate(shards, start=1)
    }
    for shard, link in links.items():
        os.symlink(shard.resolve(), folder / link)
    weight_map = {name: links[stored.path] for name, stored in tensors.items()}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2)
    )


def read_config(
    path: Path, max_position_embeddings: int | None = None
) -> dict[str, Any]:
    """Returns the ``config.json`` of the same text model.

    Args:
        path: A ``params.json``.
        max_position_embeddings: The longest sequence in tokens, where the file
            does not give it or gives another.

    Raises:
        UserError: (a ``ValueError``) naming a key that is missing, or one that
            max_mistral does not know or support.
    """
    try:
        params: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    _check_keys(path, params)
    config = {new: params[old] for old, new in _RENAMED.items()}
    heads = params["n_heads"]
    context = (
        max_position_embeddings
        or params.get("max_position_embeddings")
        or params.get("max_seq_len")
    )
    window = params.get("sliding_window", params.get("_sliding_window"))
    yarn, scaling = params.get("yarn"), params.get("llama_4_scaling")
    if yarn and context is None:
        context = int(yarn["factor"] * yarn["original_max_position_embeddings"])
    context = context or _DEFAULT_CONTEXT
    # mistral-inference, transformer.py; 7B v0.1 alone has a window and no theta.
    theta = params.get("rope_theta") or (1e6 if window is None else 1e4)
    config |= {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": params.get("n_kv_heads") or heads,
        "head_dim": params.get("head_dim") or params["dim"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "sliding_window": window,
        "tie_word_embeddings": bool(params.get("tied_embeddings")),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
    if yarn:
        config["rope_parameters"] = _yarn(yarn, theta)
    if isinstance(window, list):
        config |= _windows(path, window, params["n_layers"], context)
    if scaling:
        config |= _scaled_queries(path, config, scaling)
    if params.get("quantization"):
        config["quantization_config"] = _quantization(path, params["quantization"])
    return config


def _check_keys(path: Path, params: dict[str, Any]) -> None:
    missing = [key for key in _RENAMED if key not in params]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}. Copy the file that belongs to "
            "the checkpoint."
        )
    known = {*_RENAMED, *_OPTIONAL, *_IRRELEVANT}
    for key, value in params.items():
        unset = value is None or value is False
        if key not in known and not unset and value != _FIXED.get(key):
            raise UserError(
                f"{path} has {key} = {value!r}, which max_mistral does not "
                "support: it runs dense text models."
            )
    unknown = (params.get("yarn") or {}).keys() - _YARN
    if unknown:
        raise UserError(f"{path} has yarn with {', '.join(sorted(unknown))}, unknown.")


def _yarn(yarn: dict[str, Any], theta: float) -> dict[str, Any]:
    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": float(yarn["factor"]),
        "original_max_position_embeddings": yarn["original_max_position_embeddings"],
        "beta_fast": float(yarn.get("beta", 32.0)),
        "beta_slow": float(yarn.get("alpha", 1.0)),
    }
    # What HF's converter writes as mscale = mscale_all_dim: cos and sin stay
    # as they are. With apply_scale they grow by HF's default, 0.1 ln f + 1.
    if not yarn.get("apply_scale", True):
        rope["attention_factor"] = 1.0
    return rope


def _windows(path: Path, windows: list[Any], layers: int, context: int) -> Any:
    """The pattern repeats over the layers (mistral-inference, ``cache.py``)."""
    sizes = {window for window in windows if window and window < context}
    if layers % len(windows) or len(sizes) > 1:
        raise UserError(
            f"{path} has sliding_window = {windows!r} for {layers} layers; "
            "max_mistral supports one window size in a pattern that divides "
            "the layers."
        )
    return {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "sliding_window": next(iter(sizes), None),
        "layer_types": [
            "sliding_attention" if window in sizes else "full_attention"
            for window in windows
        ]
        * (layers // len(windows)),
    }


def _scaled_queries(path: Path, config: dict[str, Any], scaling: dict[str, Any]) -> Any:
    rope = config["rope_parameters"]
    original = rope.setdefault(
        "original_max_position_embeddings", scaling["original_max_position_embeddings"]
    )
    if config["model_type"] != "mistral" or (
        original != scaling["original_max_position_embeddings"]
    ):
        raise UserError(
            f"{path} has llama_4_scaling = {scaling!r}; max_mistral supports it "
            "with yarn's original_max_position_embeddings and one window."
        )
    rope["llama_4_scaling_beta"] = scaling["beta"]
    return {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3"}


def _quantization(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """``get_maybe_quant_config`` of HF's ``convert_ministral3_weights_to_hf.py``."""
    supported = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    if found != supported:
        raise UserError(
            f"{path} has quantization = {found!r}; max_mistral supports {supported!r}."
        )
    return {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "weight_block_size": None,
        "modules_to_not_convert": ["lm_head"],
    }
