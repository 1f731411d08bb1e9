"""Mistral's own format: ``params.json`` beside ``consolidated*.safetensors``.

Sources: ``args.py`` and ``transformer.py`` of mistral-inference, and what
``convert_mistral_weights_to_hf.py`` and ``convert_ministral3_weights_to_hf.py``
of Hugging Face make of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError, shown
from ..fields import (
    LEAST_EPS,
    LEAST_THETA,
    MOST_EPS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_THETA,
    MOST_TOKENS,
    MOST_WIDE,
    Fields,
    read_json,
)
from ..other_models import refuse_other_models

PARAMS = "params.json"

# What a file without a length was trained for: 7B, Codestral, Mathstral, Large.
_DEFAULT_CONTEXT = 32768

_REQUIRED = ("dim", "n_layers", "hidden_dim", "n_heads", "norm_eps", "vocab_size")
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
    params = read_json(path)
    refuse_other_models(str(path), params.get)
    _check_keys(path, params)
    fields = Fields(str(path), params.get)
    hidden = fields.integer("dim", high=MOST_WIDE)
    heads = fields.integer("n_heads", high=MOST_WIDE)
    layers = fields.integer("n_layers", high=MOST_LAYERS)
    windows = _find_windows(fields, layers)
    yarn = fields.fields("yarn") if params.get("yarn") else None
    context = max_position_embeddings or _find_context(fields, yarn)
    # mistral-inference, transformer.py; 7B v0.1 alone has a window and no theta.
    theta = fields.number(
        "rope_theta", LEAST_THETA, MOST_THETA, default=1e6 if windows is None else 1e4
    )
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": fields.integer("vocab_size", high=MOST_TOKENS),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("hidden_dim", high=MOST_WIDE),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("n_kv_heads", high=heads, default=heads),
        "head_dim": fields.integer(
            "head_dim", high=MOST_WIDE, default=max(hidden // heads, 1)
        ),
        "hidden_act": "silu",
        "rms_norm_eps": fields.number("norm_eps", LEAST_EPS, MOST_EPS),
        "max_position_embeddings": context,
        "sliding_window": windows if isinstance(windows, int) else None,
        "tie_word_embeddings": fields.boolean("tied_embeddings", default=False),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
    if yarn is not None:
        config["rope_parameters"] = _yarn(yarn, theta)
    if isinstance(windows, list):
        config |= _windows(path, windows, layers, context)
    if params.get("llama_4_scaling"):
        config |= _scaled_queries(path, config, fields.fields("llama_4_scaling"))
    if params.get("quantization"):
        config["quantization_config"] = _quantization(path, params["quantization"])
    return config


def _find_windows(fields: Fields, layers: int) -> int | list[int | None] | None:
    """One window for all layers, a pattern of them, or none."""
    key = "sliding_window" if fields.has("sliding_window") else "_sliding_window"
    found = fields.get(key)
    if found is None:
        return None
    if not isinstance(found, list):
        return fields.integer(key)
    if not 1 <= len(found) <= layers:
        fields.refuse(key, found, f"a list of 1 to {layers}, one a layer")
    pattern = Fields(f"{fields.source}: {key}", dict(enumerate(found)).get)
    return [pattern.integer(i) if pattern.has(i) else None for i in range(len(found))]


def _find_context(fields: Fields, yarn: Fields | None) -> int:
    for key in ("max_position_embeddings", "max_seq_len"):
        if fields.has(key):
            return fields.integer(key, high=MOST_POSITIONS)
    if yarn is None:
        return _DEFAULT_CONTEXT
    original = yarn.integer("original_max_position_embeddings", high=MOST_POSITIONS)
    context = int(yarn.number("factor") * original)
    if not 1 <= context <= MOST_POSITIONS:
        yarn.refuse("factor", yarn.get("factor"), f"one for at most {MOST_POSITIONS}")
    return context


def _check_keys(path: Path, params: dict[str, Any]) -> None:
    missing = [key for key in _REQUIRED if key not in params]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}. Copy the file that belongs to "
            "the checkpoint."
        )
    known = {*_REQUIRED, *_OPTIONAL, *_IRRELEVANT}
    for key, value in params.items():
        unset = value is None or (value is False and key not in _FIXED)
        if key in known or unset or value == _FIXED.get(key):
            continue
        if key in _FIXED:
            Fields(str(path), params.get).refuse(key, value, repr(_FIXED[key]))
        raise UserError(
            f"{path} has the unknown key {key} = {shown(value)}. If the model runs "
            "without it, remove it; else the model is not supported."
        )
    yarn = params.get("yarn")
    unknown = sorted(yarn.keys() - _YARN) if isinstance(yarn, dict) else ()
    if unknown:
        raise UserError(
            f"{path} has yarn.{unknown[0]}, which is unknown; known are "
            f"{', '.join(sorted(_YARN))}. If the model runs without it, remove it; "
            "else the model is not supported."
        )


def _yarn(yarn: Fields, theta: float) -> dict[str, Any]:
    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": float(yarn.number("factor")),
        "original_max_position_embeddings": yarn.integer(
            "original_max_position_embeddings", high=MOST_POSITIONS
        ),
        "beta_fast": float(yarn.number("beta", default=32.0)),
        "beta_slow": float(yarn.number("alpha", default=1.0)),
    }
    # What HF's converter writes as mscale = mscale_all_dim: cos and sin stay
    # as they are. With apply_scale they grow by HF's default, 0.1 ln f + 1.
    if not yarn.boolean("apply_scale", default=True):
        rope["attention_factor"] = 1.0
    return rope


def _windows(
    path: Path, windows: list[int | None], layers: int, context: int
) -> dict[str, Any]:
    """The pattern repeats over the layers (mistral-inference, ``cache.py``)."""
    sizes = {window for window in windows if window and window < context}
    if layers % len(windows) or len(sizes) > 1:
        raise UserError(
            f"{path} has sliding_window = {shown(windows)} for {layers} layers; "
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


def _scaled_queries(
    path: Path, config: dict[str, Any], scaling: Fields
) -> dict[str, Any]:
    key = "original_max_position_embeddings"
    original = scaling.integer(key, high=MOST_POSITIONS)
    rope = config["rope_parameters"]
    if config["model_type"] != "mistral" or rope.setdefault(key, original) != original:
        raise UserError(
            f"{path} has llama_4_scaling = {original} {key}; max_mistral supports it "
            f"with yarn's {key} and one window."
        )
    rope["llama_4_scaling_beta"] = scaling.number("beta")
    return {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3"}


def _quantization(path: Path, found: Any) -> dict[str, Any]:
    """``get_maybe_quant_config`` of HF's ``convert_ministral3_weights_to_hf.py``."""
    supported = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    if found != supported:
        raise UserError(
            f"{path} has quantization = {shown(found)}; max_mistral supports "
            f"{supported!r}."
        )
    return {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "weight_block_size": None,
        "modules_to_not_convert": ["lm_head"],
    }
