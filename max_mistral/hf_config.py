"""What a Hugging Face config says, read with transformers' defaults.

Sources: ``configuration_*.py`` of ``transformers/models/{mistral,ministral,
ministral3,mistral3}`` and ``modeling_rope_utils.py`` (5.12).
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import PretrainedConfig

from .errors import UserError
from .layers.rope import RopeScaling, yarn_attention_factor

logger = logging.getLogger("max.pipelines")

# transformers fills a missing one of these with the value of Mistral-7B, and
# the checkpoint then fails to load with a puzzling shape.
REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the config of the text tower; a text-only config is its own."""
    return getattr(config, "text_config", None) or config


def head_dim(config: PretrainedConfig) -> int:
    """Returns a head's width; null or missing means hidden_size / heads."""
    explicit = getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def rope_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """Returns ``rope_parameters`` with ``rope_type`` and ``rope_theta`` set.

    transformers 5 keeps everything there, for all layers or by layer type;
    files of older versions have a top-level ``rope_theta`` and
    ``rope_scaling`` with ``type`` or ``rope_type``.

    Raises:
        UserError: (a ``ValueError``) if the layer types differ.
    """
    found = (
        getattr(config, "rope_parameters", None)
        or getattr(config, "rope_scaling", None)
        or {}
    )
    nested = [value for value in found.values() if isinstance(value, dict)]
    if nested:
        if any(value != nested[0] for value in nested):
            raise UserError(
                f"config.json has rope_parameters = {found!r}; max_mistral "
                "supports only the same parameters for every layer type."
            )
        found = nested[0]
    rope = dict(found)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    theta = getattr(config, "rope_theta", None)
    rope.setdefault("rope_theta", 10000.0 if theta is None else theta)
    return rope


def rope_theta(config: PretrainedConfig) -> float:
    """Returns the base of the rotary frequencies; 10000 by default."""
    return float(rope_parameters(config)["rope_theta"])


def rope_scaling(config: PretrainedConfig) -> RopeScaling | None:
    """Returns how RoPE is stretched, or ``None`` for plain RoPE.

    Raises:
        UserError: (a ``ValueError``) naming a type that is not one of
            :data:`ROPE_TYPES`, or a parameter that the type lacks.
    """
    rope = rope_parameters(config)
    rope_type = rope["rope_type"]
    if rope_type not in ROPE_TYPES:
        _refuse("rope_type", rope_type, " and ".join(map(repr, ROPE_TYPES)))
    if rope_type == "default":
        return None
    needed = {
        "linear": ["factor"],
        "llama3": [
            "factor",
            "original_max_position_embeddings",
            "low_freq_factor",
            "high_freq_factor",
        ],
        "yarn": ["factor", "original_max_position_embeddings"],
    }[rope_type]
    missing = [key for key in needed if rope.get(key) is None]
    if missing:
        raise UserError(
            f"config.json has rope_type = {rope_type!r} but lacks "
            f"{', '.join(missing)} beside it."
        )
    if rope_type != "yarn":
        return RopeScaling(rope_type=rope_type, **{key: rope[key] for key in needed})
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = yarn_attention_factor(
            rope["factor"], rope.get("mscale"), rope.get("mscale_all_dim")
        )
    return RopeScaling(
        rope_type=rope_type,
        factor=rope["factor"],
        original_max_position_embeddings=rope["original_max_position_embeddings"],
        attention_factor=attention_factor,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),
    )


def query_scaling(config: PretrainedConfig) -> tuple[float, int] | None:
    """Returns Ministral 3's ``llama_4_scaling_beta`` and the context it counts in.

    ``None`` for models whose queries are not scaled by position.
    """
    rope = rope_parameters(config)
    beta = rope.get("llama_4_scaling_beta")
    if config.model_type != "ministral3" or not beta:
        return None
    return float(beta), int(rope["original_max_position_embeddings"])


def sliding_windows(config: PretrainedConfig) -> list[int | None]:
    """Returns each layer's window in tokens, itself included; ``None`` for all.

    Only Ministral has ``layer_types``; ``MistralModel`` in transformers
    ignores them with a warning, and so does this.
    """
    window = config.sliding_window
    if window is not None and window < 1:
        raise UserError(
            f"config.json has sliding_window = {window}; it is how many keys a "
            "token sees, at least 1, or null for all."
        )
    layers = config.num_hidden_layers
    layer_types: list[str] = getattr(config, "layer_types", None) or []
    if config.model_type != "ministral":
        if layer_types and window is not None and "full_attention" in layer_types:
            logger.warning(
                "config.json has layer_types, which a %s does not have: all "
                "layers use sliding_window = %s, as in transformers. For "
                "alternating attention set model_type to 'ministral'.",
                config.model_type,
                window,
            )
        return [window] * layers
    if len(layer_types) != layers:
        _refuse(
            "layer_types of length", len(layer_types), f"one a layer, {layers} here"
        )
    windows = {"sliding_attention": window, "full_attention": None}
    for layer_type in layer_types:
        if layer_type not in windows:
            _refuse("layer_types with", layer_type, " and ".join(map(repr, windows)))
    return [windows[layer_type] for layer_type in layer_types]


def max_seq_len(config: PretrainedConfig, max_length: int | None) -> int:
    """Returns ``max_length``, or if that is ``None`` the model's own limit.

    Raises:
        UserError: (a ``ValueError``) if it is not positive or above the limit.
    """
    limit: int = config.max_position_embeddings
    if max_length is None:
        return limit
    if not 1 <= max_length <= limit:
        raise UserError(
            f"max_length is {max_length}, but the model's limit "
            f"(max_position_embeddings) is {limit}. Set --max-length "
            f"from 1 to {limit}, or leave it out."
        )
    return max_length


def check_required_keys(model_path: str, revision: str | None) -> None:
    """Raises a ``UserError`` that names the required keys ``config.json`` lacks.

    Args:
        model_path: A folder or a Hub id (its cached or fetched file is read).
        revision: The Hub revision.
    """
    raw, _ = PretrainedConfig.get_config_dict(model_path, revision=revision)
    text = raw.get("text_config", raw)
    missing = [key for key in REQUIRED_KEYS if key not in text]
    if missing:
        raise UserError(
            f"config.json of {model_path} lacks {', '.join(missing)}. Copy the "
            "file that belongs to the checkpoint, or add the values it was "
            "trained with."
        )


def check_supported(config: PretrainedConfig) -> None:
    """Raises a ``UserError`` that names the first value the graph cannot honour.

    Args:
        config: A text tower's config.
    """
    if config.hidden_act != "silu":
        _refuse("hidden_act", config.hidden_act, "'silu'")
    rope_scaling(config)
    sliding_windows(config)
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            _refuse(key, True, "checkpoints without biases")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        _refuse("num_key_value_heads", groups, f"divisors of its {heads} heads")


def _refuse(key: str, found: object, expected: str) -> None:
    raise UserError(
        f"config.json has {key} = {found!r}; max_mistral supports only {expected}."
    )
