"""What a Hugging Face config says of RoPE.

Source: ``modeling_rope_utils.py`` of transformers (5.12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from .errors import UserError, refuse

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How RoPE is stretched beyond the context it was trained on."""

    rope_type: str
    """``"linear"``, ``"llama3"`` or ``"yarn"``."""
    factor: float
    original_max_position_embeddings: int | None = None
    """Of ``"llama3"`` and ``"yarn"``: the context before stretching, in tokens."""
    attention_factor: float = 1.0
    """Of ``"yarn"``: what cosines and sines are multiplied by."""
    beta_fast: float = 32.0
    """Of ``"yarn"``: more rotations than this over the original context are kept."""
    beta_slow: float = 1.0
    """Of ``"yarn"``: fewer rotations than this are stretched by ``factor``."""
    truncate: bool = True
    """Of ``"yarn"``: whether the bounds between the two are whole dimensions."""
    low_freq_factor: float = 1.0
    """Of ``"llama3"``."""
    high_freq_factor: float = 4.0
    """Of ``"llama3"``."""


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
        refuse("rope_type", rope_type, " and ".join(map(repr, ROPE_TYPES)))
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


def yarn_attention_factor(
    factor: float, mscale: float | None, mscale_all_dim: float | None
) -> float:
    """Returns YaRN's factor where the config gives none.

    The ratio of the two mscales if both are set, else ``0.1 ln(factor) + 1``;
    ``_compute_yarn_parameters``, ``get_mscale``.
    """

    def get_mscale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return get_mscale(mscale) / get_mscale(mscale_all_dim)
    return get_mscale(1.0)
