"""What a Hugging Face config says of RoPE.

Source: ``modeling_rope_utils.py`` of transformers (5.12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from .errors import UserError, refuse, shown
from .fields import LEAST_THETA, MOST_POSITIONS, MOST_THETA, Fields

ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_KNOWN = (
    *("rope_type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "truncate"),
    *("mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"),
    "llama_4_scaling_beta",
)
# What else may be there, for it changes nothing.
_NEUTRAL = {"partial_rotary_factor": 1.0, "finetuned": True}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How RoPE is stretched beyond the context it was trained on."""

    rope_type: str
    """``"linear"``, ``"llama3"``, ``"yarn"`` or, of a GGUF file, ``"divisors"``."""
    factor: float = 1.0
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
    divisors: tuple[float, ...] = ()
    """Of ``"divisors"``: what each frequency is divided by, ``head_dim / 2``."""


def rope_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """Returns ``rope_parameters`` with ``rope_type`` and ``rope_theta`` set.

    transformers 5 keeps everything there, for all layers or by layer type;
    files of older versions have a top-level ``rope_theta`` and
    ``rope_scaling`` with ``type`` or ``rope_type``.

    Raises:
        UserError: (a ``ValueError``) if the layer types differ, or naming a
            parameter that none of :data:`ROPE_TYPES` has.
    """
    found = getattr(config, "rope_parameters", None)
    found = found or getattr(config, "rope_scaling", None) or {}
    if not isinstance(found, dict):
        refuse("rope_parameters", found, "an object")
    nested = [isinstance(value, dict) for value in found.values()]
    if any(nested):
        kinds = list(found.values())
        if not all(nested) or any(kind != kinds[0] for kind in kinds):
            raise UserError(
                f"config.json has rope_parameters = {shown(found)}; max_mistral "
                "supports only the same parameters for every layer type, or for all "
                "layers at once."
            )
        found = kinds[0]
    rope = dict(found)
    # Ministral 3 repeats the context here; nothing is computed from it.
    rope.pop("max_position_embeddings", None)
    old = rope.pop("type", None)
    rope.setdefault("rope_type", "default" if old is None else old)
    theta = getattr(config, "rope_theta", None)
    rope.setdefault("rope_theta", 10000.0 if theta is None else theta)
    unknown = {
        key: value
        for key, value in rope.items()
        if key not in _KNOWN and value is not None and value != _NEUTRAL.get(key)
    }
    if unknown:
        key, value = next(iter(unknown.items()))
        refuse(f"rope_parameters with {key}", value, " and ".join(_KNOWN))
    return rope


def _fields(config: PretrainedConfig) -> Fields:
    return Fields("config.json: rope_parameters", rope_parameters(config).get)


def rope_theta(config: PretrainedConfig) -> float:
    """Returns the base of the rotary frequencies; 10000 by default."""
    return float(_fields(config).number("rope_theta", LEAST_THETA, MOST_THETA))


def rope_scaling(config: PretrainedConfig) -> RopeScaling | None:
    """Returns how RoPE is stretched, or ``None`` for plain RoPE.

    Raises:
        UserError: (a ``ValueError``) naming a type that is not one of
            :data:`ROPE_TYPES`, or a parameter that the type lacks or that is out
            of range.
    """
    rope = _fields(config)
    rope_type = rope.get("rope_type")
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
    missing = [key for key in needed if not rope.has(key)]
    if missing:
        raise UserError(
            f"config.json has rope_type = {rope_type!r} but lacks "
            f"{', '.join(missing)} beside it. Copy the checkpoint's config.json "
            "again."
        )
    factor = rope.number("factor")
    if rope_type == "linear":
        return RopeScaling(rope_type=rope_type, factor=factor)
    original = rope.integer("original_max_position_embeddings", high=MOST_POSITIONS)
    if rope_type == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            rope.refuse("high_freq_factor", high, f"more than low_freq_factor, {low}")
        return RopeScaling(
            rope_type=rope_type,
            factor=factor,
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    if rope.has("attention_factor"):
        attention_factor = rope.number("attention_factor")
    else:
        # 0 counts as none, as in transformers.
        mscale = rope.number("mscale", low=0.0, default=0.0)
        all_dim = rope.number("mscale_all_dim", low=0.0, default=0.0)
        attention_factor = yarn_attention_factor(factor, mscale, all_dim)
    return RopeScaling(
        rope_type=rope_type,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        truncate=rope.boolean("truncate", default=True),
    )


def query_scaling(config: PretrainedConfig) -> tuple[float, int] | None:
    """Returns Ministral 3's ``llama_4_scaling_beta`` and the context it counts in.

    ``None`` for models whose queries are not scaled by position.
    """
    rope = _fields(config)
    if config.model_type != "ministral3" or not rope.get("llama_4_scaling_beta"):
        return None
    original = rope.integer("original_max_position_embeddings", high=MOST_POSITIONS)
    return float(rope.number("llama_4_scaling_beta")), original


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
