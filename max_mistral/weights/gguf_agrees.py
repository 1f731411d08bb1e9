"""Whether a GGUF file and a config.json are of the same model."""

from __future__ import annotations

import math

from transformers import PretrainedConfig

from .. import hf_config as hf
from ..hf_rope import query_scaling, rope_parameters, rope_scaling, rope_theta
from .gguf_file import GGUFCheckpoint

# A file has float32, and prepare rounds them to six digits.
_CLOSE = 1e-5


def check_config(checkpoint: GGUFCheckpoint, config: PretrainedConfig) -> None:
    """Checks that a config says what a file says, where the file says it.

    The shapes of two models may be the same, and only such numbers differ.

    Args:
        checkpoint: The file.
        config: A text tower's config, which is supported.

    Raises:
        UserError: (a ``ValueError``) naming what differs.
    """
    file, arch = checkpoint.metadata, checkpoint.architecture
    stated = _heads(config) | _rope(config)
    if rope_scaling(config) is None:
        # A linear factor of 1 is none, and some files have 0 for it.
        factor = file.get(f"{arch}.rope.scaling.factor")
        if factor == 1:
            del stated["rope.scaling.type"]
        unread = file.get(f"{arch}.rope.scaling.type") == "none"
        if unread or factor == 0:
            del stated["rope.scaling.factor"]
        # The older name counts where the newer is not there; as in llama.cpp.
        if unread or factor is not None or file.get(f"{arch}.rope.scale_linear") == 0:
            del stated["rope.scale_linear"]
    for name, value in stated.items():
        key = f"{arch}.{name}"
        if file.has(key) and not _alike(file.get(key), value):
            file.refuse(
                key,
                file.get(key),
                f"{value}, as config.json has it",
                "If config.json is not of this file, make it with python -m "
                "max_mistral.prepare.",
            )


def _heads(config: PretrainedConfig) -> dict[str, object]:
    head_dim = hf.head_dim(config)
    return {
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 0,
    }


def _rope(config: PretrainedConfig) -> dict[str, object]:
    scaling, queries = rope_scaling(config), query_scaling(config)
    stated: dict[str, object] = {
        "rope.freq_base": rope_theta(config),
        "rope.dimension_count": hf.head_dim(config),
    }
    if scaling is None:
        stated["rope.scaling.type"] = "none"
        stated["rope.scaling.factor"] = stated["rope.scale_linear"] = 1
    # Llama 3's is a tensor of the file.
    elif scaling.rope_type in ("linear", "yarn"):
        stated["rope.scaling.type"] = scaling.rope_type
        stated["rope.scaling.factor"] = scaling.factor
    if scaling is not None and scaling.rope_type == "yarn":
        prefix = "rope.scaling"
        original = scaling.original_max_position_embeddings
        stated[f"{prefix}.original_context_length"] = original
        stated[f"{prefix}.yarn_beta_fast"] = scaling.beta_fast
        stated[f"{prefix}.yarn_beta_slow"] = scaling.beta_slow
        rope = rope_parameters(config)
        mscale, all_dim = rope.get("mscale") or 0, rope.get("mscale_all_dim") or 0
        # A file has the second of the two; its first is 1.
        if rope.get("attention_factor") is None and mscale in (0, 1):
            stated[f"{prefix}.yarn_log_multiplier"] = all_dim if mscale else 0
    stated["attention.temperature_scale"] = 0 if queries is None else queries[0]
    if queries is not None:
        stated["attention.temperature_length"] = queries[1]
    return stated


def _alike(found: object, stated: object) -> bool:
    if isinstance(found, int | float) and isinstance(stated, int | float):
        return math.isclose(found, stated, rel_tol=_CLOSE)
    return found == stated
