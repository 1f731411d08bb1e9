"""Q and K projections from the rotary order of Mistral and llama.cpp to HF's."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

from ..hf_config import text_config

Scalar = TypeVar("Scalar", bound=np.generic)


def rotary_heads(graph_name: str, config: PretrainedConfig) -> int | None:
    """Returns how many heads a Q or K projection has; ``None`` for other tensors."""
    config = text_config(config)
    if graph_name.endswith(".self_attn.q_proj.weight"):
        return config.num_attention_heads
    if graph_name.endswith(".self_attn.k_proj.weight"):
        return config.num_key_value_heads
    return None


def split_rotary(weight: npt.NDArray[Scalar], heads: int) -> npt.NDArray[Scalar]:
    """Reorders the rows of a Q or K projection.

    Mistral's own format and llama.cpp pair dimension 2j of a head with 2j + 1,
    Hugging Face pairs j with j + head_dim / 2. The same as ``permute_for_rope``
    in HF's ``convert_mistral_weights_to_hf.py``; the inverse of
    ``LlamaModel.permute`` in llama.cpp's ``convert_hf_to_gguf.py``.

    Args:
        weight: ``[heads * head_dim, hidden_size]``.
        heads: How many heads the rows hold.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    # [heads, head_dim / 2, 2, hidden] -> [heads, 2, head_dim / 2, hidden]
    return pairs.swapaxes(1, 2).reshape(rows, hidden)
