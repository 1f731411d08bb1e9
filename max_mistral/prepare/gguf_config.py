"""The Hugging Face config of the model in a GGUF file.

Keys: llama.cpp ``gguf-py/gguf/constants.py``, written by ``conversion/llama.py``
and ``conversion/mistral3.py``. A Llama is a Mistral without a window.
"""

from __future__ import annotations

from typing import Any

import transformers

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
)
from ..hf_rope import RopeScaling
from ..weights.gguf_file import GGUFCheckpoint
from .gguf_tokenizer import read_ends


def read_config(checkpoint: GGUFCheckpoint) -> dict[str, Any]:
    """Returns the ``config.json`` of the same model.

    Raises:
        UserError: (a ``ValueError``) naming metadata that is missing, no such
            value, or a RoPE that max_mistral does not support.
    """
    file, arch = checkpoint.metadata, checkpoint.architecture
    hidden = file.integer(f"{arch}.embedding_length", high=MOST_WIDE)
    heads = file.integer(f"{arch}.attention.head_count", high=MOST_WIDE)
    width = f"{arch}.attention.key_length"
    head_dim = file.integer(width, high=MOST_WIDE, default=max(hidden // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        # Another is not what the key says: a Mistral has one width of heads.
        file.one_of(f"{arch}.{key}", [head_dim], default=head_dim)
    vocab_size = len(file.items("tokenizer.ggml.tokens", str, MOST_TOKENS))
    window = f"{arch}.attention.sliding_window"
    ends = read_ends(file)
    rope = _rope(file, arch)
    # What the file's own tensor says of RoPE stays in the file; here it is checked.
    kind = rope["rope_type"]
    stated = None if kind == "default" else RopeScaling(rope_type=kind)
    checkpoint.rope_scaling(stated, head_dim, rope["rope_theta"])
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": file.integer(
            f"{arch}.feed_forward_length", high=MOST_WIDE
        ),
        "num_hidden_layers": file.integer(f"{arch}.block_count", high=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer(
            f"{arch}.attention.head_count_kv", high=heads, default=heads
        ),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.integer(
            f"{arch}.context_length", high=MOST_POSITIONS
        ),
        "rms_norm_eps": _number(
            file, f"{arch}.attention.layer_norm_rms_epsilon", LEAST_EPS, MOST_EPS
        ),
        # llama.cpp's conversion drops the window of Mistral-7B v0.1; 0 is none.
        "sliding_window": file.integer(window, 0, default=0) or None,
        "tie_word_embeddings": "output.weight" not in checkpoint.tensors,
        "bos_token_id": _token_id(file, "bos_token_id", vocab_size),
        # MAX and transformers stop at each of a list.
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "rope_parameters": rope,
        "dtype": "float32",
        # Without it transformers warns that the pattern of tekken is wrong.
        "transformers_version": transformers.__version__,
    }
    beta = f"{arch}.attention.temperature_scale"
    if file.has(beta) and file.get(beta) != 0:
        config |= {
            "architectures": ["Ministral3ForCausalLM"],
            "model_type": "ministral3",
        }
        config["rope_parameters"] |= _scaled_queries(file, arch, beta)
    return config


def _token_id(file: Fields, role: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{role}"
    return file.integer(key, 0, vocab_size - 1) if file.has(key) else None


def _rope(file: Fields, arch: str) -> dict[str, Any]:
    theta = _number(
        file, f"{arch}.rope.freq_base", LEAST_THETA, MOST_THETA, default=10000.0
    )
    # As llama.cpp has it: a factor without a type is linear; scale_linear is its
    # older name, and 0 is none.
    factor = f"{arch}.rope.scaling.factor"
    if not file.has(factor) and file.has(f"{arch}.rope.scale_linear"):
        factor = f"{arch}.rope.scale_linear"
    has_factor = file.has(factor) and file.get(factor) != 0
    default = "linear" if has_factor else "none"
    key = f"{arch}.rope.scaling.type"
    kind = file.one_of(key, ("none", "linear", "yarn"), default=default)
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    rope = {"rope_type": kind, "rope_theta": theta, "factor": _number(file, factor)}
    if kind == "linear":
        return rope
    scaling = f"{arch}.rope.scaling"
    return rope | {
        "original_max_position_embeddings": _original(file, arch),
        "beta_fast": _number(file, f"{scaling}.yarn_beta_fast", default=32.0),
        "beta_slow": _number(file, f"{scaling}.yarn_beta_slow", default=1.0),
        "mscale": 1.0,
        "mscale_all_dim": _number(
            file, f"{scaling}.yarn_log_multiplier", low=0.0, default=0.0
        ),
    }


def _scaled_queries(file: Fields, arch: str, beta: str) -> dict[str, Any]:
    original = _original(file, arch)
    file.one_of(f"{arch}.attention.temperature_length", [original], default=original)
    return {
        "original_max_position_embeddings": original,
        "llama_4_scaling_beta": _number(file, beta),
    }


def _original(file: Fields, arch: str) -> int:
    key = f"{arch}.rope.scaling.original_context_length"
    return file.integer(key, high=MOST_POSITIONS)


def _number(file: Fields, key: str, *arguments: float, **options: float) -> float:
    """The file has a float32; 1e-05 reads better than 9.99999974e-06."""
    return float(f"{file.number(key, *arguments, **options):.6g}")
