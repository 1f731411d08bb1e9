"""The Hugging Face config of the model in a GGUF file.

Keys: llama.cpp ``gguf-py/gguf/constants.py``, written by ``conversion/llama.py``
and ``conversion/mistral3.py``. A Llama is a Mistral without a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..weights.gguf_file import GGUFCheckpoint


def read_config(checkpoint: GGUFCheckpoint) -> dict[str, Any]:
    """Returns the ``config.json`` of the same model.

    Raises:
        UserError: (a ``ValueError``) naming metadata that is missing, or a
            RoPE that max_mistral does not support.
    """
    file, arch = checkpoint, checkpoint.architecture
    hidden = file.require(f"{arch}.embedding_length")
    heads = file.require(f"{arch}.attention.head_count")
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": len(file.require("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": file.require(f"{arch}.feed_forward_length"),
        "num_hidden_layers": file.require(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{arch}.attention.head_count_kv", heads),
        "head_dim": file.get(f"{arch}.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "max_position_embeddings": file.require(f"{arch}.context_length"),
        "rms_norm_eps": _number(
            file.require(f"{arch}.attention.layer_norm_rms_epsilon")
        ),
        # llama.cpp's conversion drops the window of Mistral-7B v0.1.
        "sliding_window": file.get(f"{arch}.attention.sliding_window"),
        "tie_word_embeddings": "output.weight" not in file.tensor_names,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.require("tokenizer.ggml.eos_token_id"),
        "rope_parameters": _rope(checkpoint),
        "dtype": "float32",
    }
    beta = file.get(f"{arch}.attention.temperature_scale")
    if beta:
        config |= {
            "architectures": ["Ministral3ForCausalLM"],
            "model_type": "ministral3",
        }
        config["rope_parameters"]["llama_4_scaling_beta"] = _number(beta)
    return config


def _rope(file: GGUFCheckpoint) -> dict[str, Any]:
    arch = file.architecture
    theta = file.get(f"{arch}.rope.freq_base", 10000.0)
    kind = file.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    factor = _number(file.require(f"{arch}.rope.scaling.factor"))
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind != "yarn":
        raise UserError(
            f"{file.path} scales RoPE by {kind!r}; max_mistral supports 'linear' "
            "and 'yarn'."
        )
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": file.require(
            f"{arch}.rope.scaling.original_context_length"
        ),
        "beta_fast": _number(file.get(f"{arch}.rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": _number(file.get(f"{arch}.rope.scaling.yarn_beta_slow", 1.0)),
        "mscale": 1.0,
        "mscale_all_dim": _number(
            file.get(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0)
        ),
    }


def _number(value: float) -> float:
    """The file has a float32; 1e-05 reads better than 9.99999974e-06."""
    return float(f"{value:.6g}")
