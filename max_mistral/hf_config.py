"""What a Hugging Face config says, read with transformers' defaults.

Sources: ``configuration_*.py`` of ``transformers/models/{mistral,ministral,
ministral3,mistral3}`` and ``modeling_rope_utils.py`` (5.12).
"""

from __future__ import annotations

import logging

from transformers import PretrainedConfig

from .errors import UserError, refuse
from .hf_rope import rope_scaling

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


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the config of the text tower; a text-only config is its own."""
    return getattr(config, "text_config", None) or config


def head_dim(config: PretrainedConfig) -> int:
    """Returns a head's width; null or missing means hidden_size / heads."""
    explicit = getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def sliding_windows(config: PretrainedConfig) -> list[int | None]:
    """Returns each layer's window in tokens, itself included; ``None`` for all.

    Only Ministral has ``layer_types``; ``MistralModel`` in transformers
    ignores them, and so does this; see :func:`warn_of_ignored`.
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
        refuse("hidden_act", config.hidden_act, "'silu'")
    rope_scaling(config)
    sliding_windows(config)
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            refuse(key, True, "checkpoints without biases")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        refuse("num_key_value_heads", groups, f"divisors of its {heads} heads")


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
