"""What a Hugging Face config says, read with transformers' defaults.

Sources: ``transformers/models/mistral/configuration_mistral.py`` and
``modeling_rope_utils.py`` (5.12).
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from .errors import UserError

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


def head_dim(config: PretrainedConfig) -> int:
    """Returns a head's width; null or missing means hidden_size / heads."""
    explicit = getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def rope_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """Returns ``rope_parameters`` with ``rope_type`` and ``rope_theta`` set.

    transformers 5 keeps everything there; files of older versions have a
    top-level ``rope_theta`` and ``rope_scaling`` with ``type`` or
    ``rope_type``.
    """
    found = (
        getattr(config, "rope_parameters", None)
        or getattr(config, "rope_scaling", None)
        or {}
    )
    rope = dict(found)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    theta = getattr(config, "rope_theta", None)
    rope.setdefault("rope_theta", 10000.0 if theta is None else theta)
    return rope


def rope_theta(config: PretrainedConfig) -> float:
    """Returns the base of the rotary frequencies; 10000 by default."""
    return float(rope_parameters(config)["rope_theta"])


def check_required_keys(model_path: str, revision: str | None) -> None:
    """Raises a ``UserError`` that names the required keys ``config.json`` lacks.

    Args:
        model_path: A folder or a Hub id (its cached or fetched file is read).
        revision: The Hub revision.
    """
    raw, _ = PretrainedConfig.get_config_dict(model_path, revision=revision)
    missing = [key for key in REQUIRED_KEYS if key not in raw]
    if missing:
        raise UserError(
            f"config.json of {model_path} lacks {', '.join(missing)}. Copy the "
            "file that belongs to the checkpoint, or add the values it was "
            "trained with."
        )


def check_supported(config: PretrainedConfig) -> None:
    """Raises a ``UserError`` that names the first value the graph cannot honour."""

    def refuse(key: str, found: object, expected: str) -> None:
        raise UserError(
            f"config.json has {key} = {found!r}; max_mistral supports only {expected}."
        )

    if config.hidden_act != "silu":
        refuse("hidden_act", config.hidden_act, "'silu'")
    rope_type = rope_parameters(config)["rope_type"]
    if rope_type != "default":
        refuse("rope_type", rope_type, "'default'")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            refuse(key, True, "checkpoints without biases")
    if getattr(config, "quantization_config", None):
        method = config.quantization_config.get("quant_method", "unknown")
        refuse(
            "quantization_config.quant_method",
            method,
            "float32, bfloat16 and float16 checkpoints",
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        refuse("num_key_value_heads", groups, f"divisors of its {heads} heads")
