"""A GGUF file's metadata and tensors, as a Hugging Face checkpoint has them.

Format: ``ggml/docs/gguf.md`` in llama.cpp; the ``gguf`` package reads it and
dequantizes every type with NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import MistralConfig

from ..errors import UserError
from .names import check_tensors, dropped_tensors, expected_tensors
from .rotary import rotary_heads, split_rotary

# GGUF architectures that compute what Mistral computes.
ARCHITECTURES = ("llama",)


class GGUFCheckpoint:
    """One open GGUF file.

    Args:
        path: The file.

    Raises:
        UserError: (a ``ValueError``) if it is no complete GGUF file, or one of
            an architecture that is not Mistral's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"{path} is not a complete GGUF file ({error}). Fetch it again."
            ) from error
        architecture = self.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"{path} holds the architecture {architecture!r}; max_mistral "
                f"reads {' and '.join(map(repr, ARCHITECTURES))}."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a metadata value; ``default`` where the file has none."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """Returns a metadata value; raises a ``UserError`` where there is none."""
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path} has no metadata {key!r}.")
        return value

    def config(self) -> dict[str, Any]:
        """Returns the ``config.json`` of the same model as a Mistral.

        A Llama is a Mistral without a window, so ``sliding_window`` is null.
        """
        self._refuse_rope_scaling()
        hidden = self.require("llama.embedding_length")
        heads = self.require("llama.attention.head_count")
        names = {tensor.name for tensor in self._reader.tensors}
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": len(self.require("tokenizer.ggml.tokens")),
            "hidden_size": hidden,
            "intermediate_size": self.require("llama.feed_forward_length"),
            "num_hidden_layers": self.require("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("llama.attention.head_count_kv", heads),
            "head_dim": self.get("llama.attention.key_length", hidden // heads),
            "hidden_act": "silu",
            "max_position_embeddings": self.require("llama.context_length"),
            # The file has a float32; 1e-05 reads better than 9.99999974e-06.
            "rms_norm_eps": float(
                f"{self.require('llama.attention.layer_norm_rms_epsilon'):.6g}"
            ),
            "rope_theta": self.get("llama.rope.freq_base", 10000.0),
            "sliding_window": None,
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": self.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.get("tokenizer.ggml.eos_token_id"),
            "dtype": "float32",
        }

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yields each tensor in float32 under its Hugging Face name.

        Raises:
            UserError: (a ``ValueError``) if the file's tensors are not those
                of its metadata.
        """
        config = MistralConfig(**self.config())
        tied = config.tie_word_embeddings
        expected = expected_tensors(config, "gguf", tied=tied)
        check_tensors(
            # GGUF gives the innermost dimension first.
            {
                tensor.name: tuple(int(d) for d in reversed(tensor.shape))
                for tensor in self._reader.tensors
            },
            expected,
            dropped_tensors(config, "gguf", tied=tied),
            str(self.path),
        )
        huggingface = {
            tensor.graph: name
            for name, tensor in expected_tensors(
                config, "huggingface", tied=tied
            ).items()
        }
        for tensor in self._reader.tensors:
            if tensor.name not in expected:
                continue
            graph = expected[tensor.name].graph
            values = dequantize(tensor.data, tensor.tensor_type)
            heads = rotary_heads(graph, config)
            if heads is not None:
                values = split_rotary(values, heads)
            yield huggingface[graph], values

    def _refuse_rope_scaling(self) -> None:
        scaling = self.get("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise UserError(
                f"{self.path} scales RoPE ({scaling!r}), which max_mistral "
                "does not support."
            )
