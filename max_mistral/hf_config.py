"""What a Hugging Face config says, read with transformers' defaults.

Sources: ``configuration_*.py`` of ``transformers/models/{mistral,ministral,
ministral3,mistral3}``, ``configuration_utils.py`` and ``modeling_rope_utils.py``
(5.12).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from .errors import UserError, refuse
from .fields import (
    LEAST_EPS,
    MOST_EPS,
    MOST_LABELS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_TOKENS,
    MOST_WIDE,
    Fields,
)
from .hf_rope import query_scaling, rope_scaling, rope_theta
from .other_models import refuse_other_models

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

# How keys end of whose number transformers makes a list or a table.
_COUNTS = {"layers": MOST_LAYERS, "layer": MOST_LAYERS, "labels": MOST_LABELS}

# ``model_type`` of the models that the graph computes.
_TEXT_MODELS = ("mistral", "ministral", "ministral3")
# Of a whole config, which may have a text tower and an image tower.
_MODELS = (*_TEXT_MODELS, "mistral3")
# Of a tower; transformers takes the first where it says nothing.
_TOWERS: dict[str, tuple[str, ...]] = {
    "text_config": _TEXT_MODELS,
    "vision_config": ("pixtral",),
}


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the config of the text tower; a text-only config is its own."""
    return getattr(config, "text_config", None) or config


def head_dim(config: PretrainedConfig) -> int:
    """Returns a head's width; null or missing means hidden_size / heads."""
    explicit = getattr(config, "head_dim", None)
    if explicit:
        return explicit
    fields = _fields(config)
    hidden = fields.integer("hidden_size", high=MOST_WIDE)
    return hidden // fields.integer("num_attention_heads", high=MOST_WIDE)


def _fields(config: PretrainedConfig) -> Fields:
    return Fields("config.json", lambda key: getattr(config, key, None))


def sliding_windows(config: PretrainedConfig) -> list[int | None]:
    """Returns each layer's window in tokens, itself included; ``None`` for all.

    Only Ministral has ``layer_types``; ``MistralModel`` in transformers
    ignores them, and so does this; see :func:`warn_of_ignored`.
    """
    fields = _fields(config)
    # How many keys a token sees.
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    layer_types: list[str] = (
        fields.items("layer_types", str, MOST_LAYERS)
        if fields.has("layer_types")
        else []
    )
    if config.model_type != "ministral":
        return [window] * layers
    if len(layer_types) != layers:
        refuse("layer_types of length", len(layer_types), f"one a layer, {layers} here")
    windows = {"sliding_attention": window, "full_attention": None}
    for layer_type in layer_types:
        if layer_type not in windows:
            refuse("layer_types with", layer_type, " and ".join(map(repr, windows)))
    return [windows[layer_type] for layer_type in layer_types]


def max_seq_len(config: PretrainedConfig, max_length: int | None) -> int:
    """Returns ``max_length``, or if that is ``None`` the model's own limit.

    Raises:
        UserError: (a ``ValueError``) if it is not positive or above the limit.
    """
    limit = _fields(config).integer("max_position_embeddings", high=MOST_POSITIONS)
    if max_length is None:
        return limit
    if not 1 <= max_length <= limit:
        raise UserError(
            f"max_length is {max_length}, but the model's limit "
            f"(max_position_embeddings) is {limit}. Set --max-length "
            f"from 1 to {limit}, or leave it out."
        )
    return max_length


def check_raw(source: str, raw: Mapping[str, Any]) -> None:
    """Raises a ``UserError`` for what transformers must not make a config of.

    It would read another file, which nobody checked, in place of one that has
    ``configuration_files``. It makes whichever of its models a ``model_type``
    names, and lists as long as some counts say, so a damaged or hostile config
    would hang it or fill the memory.

    Args:
        source: What to call the file in the message.
        raw: What the file says, also of image towers.
    """
    fields = Fields(source, raw.get)
    if "configuration_files" in raw:
        fields.refuse(
            "configuration_files",
            raw["configuration_files"],
            "no such key, for transformers would read another file",
            "Write the model's values into this one, and take the key out.",
        )
    fields.one_of("model_type", _MODELS)
    for key, kinds in _TOWERS.items():
        # What is no object is refused later.
        if isinstance(raw.get(key), dict):
            fields.fields(key).one_of("model_type", kinds, kinds[0])
    _check_counts(source, raw)


def _check_counts(source: str, raw: Mapping[str, Any]) -> None:
    """Raises a ``UserError`` for a count that no model has."""
    parts = [(source, raw)]
    while parts:
        where, part = parts.pop()
        for key, value in part.items():
            most = _COUNTS.get(key.rpartition("_")[2])
            if isinstance(value, dict):
                parts.append((f"{where}: {key}", value))
            elif most is not None and type(value) is int and value > most:
                Fields(where, part.get).refuse(key, value, f"{most} at most")


def check_required_keys(model_path: str, revision: str | None) -> None:
    """Raises a ``UserError`` that names the required keys ``config.json`` lacks.

    Args:
        model_path: A folder or a Hub id (its cached or fetched file is read).
        revision: The Hub revision.
    """
    raw, _ = PretrainedConfig.get_config_dict(model_path, revision=revision)
    text = raw.get("text_config", raw)
    if not isinstance(text, dict):
        refuse("text_config", text, "an object")
    missing = [key for key in REQUIRED_KEYS if key not in text]
    if missing:
        raise UserError(
            f"config.json of {model_path} lacks {', '.join(missing)}. Copy the "
            "file that belongs to the checkpoint, or add the values it was "
            "trained with."
        )


def check_family(config: PretrainedConfig) -> None:
    """Raises a ``UserError`` if the model is none of the family; says which it is.

    Args:
        config: The whole config; behind the name of one of the family may be
            the text tower of another.
    """
    refuse_other_models(
        "config.json",
        lambda key: getattr(config, key, None),
        lambda key: getattr(text_config(config), key, None),
    )
    kind = text_config(config).model_type
    if kind not in _TEXT_MODELS:
        *others, last = map(repr, _TEXT_MODELS)
        refuse("model_type", kind, f"{', '.join(others)} and {last}")


def check_supported(config: PretrainedConfig) -> None:
    """Raises a ``UserError`` that names the first value the graph cannot honour.

    Args:
        config: A text tower's config.
    """
    fields = _fields(config)
    for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
        fields.integer(key, high=MOST_WIDE)
    fields.integer("vocab_size", high=MOST_TOKENS)
    fields.integer("max_position_embeddings", high=MOST_POSITIONS)
    fields.number("rms_norm_eps", LEAST_EPS, MOST_EPS)
    if config.hidden_act != "silu":
        refuse("hidden_act", config.hidden_act, "'silu'")
    rope_scaling(config)
    rope_theta(config)
    query_scaling(config)
    sliding_windows(config)
    if getattr(config, "partial_rotary_factor", None) not in (None, 1):
        refuse("partial_rotary_factor", config.partial_rotary_factor, "1.0")
    # transformers lets each token see those after it, then.
    if getattr(config, "is_causal", None) not in (None, True):
        refuse("is_causal", config.is_causal, "true")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            refuse(key, True, "checkpoints without biases")
    heads = fields.integer("num_attention_heads", high=MOST_WIDE)
    groups = fields.integer("num_key_value_heads", high=heads)
    if heads % groups:
        refuse("num_key_value_heads", groups, f"divisors of its {heads} heads")
    # Explicit or not, RoPE turns pairs of dimensions.
    if fields.has("head_dim") and config.head_dim != 0:
        fields.integer("head_dim", 2, MOST_WIDE)
    if head_dim(config) < 2 or head_dim(config) % 2:
        refuse("a head_dim of", head_dim(config), "even ones")


def warn_of_ignored(config: PretrainedConfig) -> None:
    """Warns of ``layer_types`` that count for nothing, as transformers does."""
    window, layer_types = config.sliding_window, getattr(config, "layer_types", None)
    if (
        config.model_type != "ministral"
        and window is not None
        and "full_attention" in (layer_types or [])
    ):
        logger.warning(
            "config.json has layer_types, which a %s does not have: all layers use "
            "sliding_window = %s, as in transformers. For alternating attention set "
            "model_type to 'ministral'.",
            config.model_type,
            window,
        )
