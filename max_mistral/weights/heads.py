"""The heads of projections: their rotary order, and copies for several devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from transformers import PretrainedConfig

from ..errors import UserError
from ..hf_config import text_config
from ..sharing import Sharing

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


def join_rotary(weight: npt.NDArray[Scalar], heads: int) -> npt.NDArray[Scalar]:
    """Undoes :func:`split_rotary`."""
    rows, hidden = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, hidden)
    return halves.swapaxes(1, 2).reshape(rows, hidden)


def repeat_heads(
    weight: npt.NDArray[Scalar], heads: int, copies: int
) -> npt.NDArray[Scalar]:
    """Returns each head ``copies`` times, one after the other.

    Args:
        weight: ``[heads * rows_per_head, columns]``.
        heads: How many heads the rows hold.
        copies: How often each is repeated.
    """
    rows, columns = weight.shape
    by_head = weight.reshape(heads, rows // heads, columns)
    return by_head.repeat(copies, axis=0).reshape(rows * copies, columns)


def copy_kv_heads(
    weights: dict[str, WeightData], sharing: Sharing
) -> dict[str, WeightData]:
    """Gives each device a key-value head where there are fewer heads than devices.

    The copies stand side by side, so that each device's queries find the head
    that they would have used.

    Args:
        weights: The tensors by their names in the graph.
        sharing: How devices share the model.

    Raises:
        UserError: (a ``ValueError``) if a scale spans several heads.
    """
    heads, copies = sharing.num_key_value_heads, sharing.kv_head_copies
    if copies == 1:
        return weights
    copied = dict(weights)
    for name, weight in weights.items():
        if (".k_proj." in name or ".v_proj." in name) and weight.shape:
            if int(weight.shape[0]) % heads:
                raise UserError(
                    f"{name} has {weight.shape[0]} rows of scales for {heads} "
                    "key-value heads, so they cannot be copied to more devices. "
                    f"Use {heads} devices or fewer."
                )
            repeat = partial(repeat_heads, heads=heads, copies=copies)
            copied[name] = on_rows(weight, repeat)
    return copied


def on_rows(
    weight: WeightData, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> WeightData:
    """Returns a matrix whose rows ``change`` moved or copied.

    NumPy has no bfloat16 and no float8, but rows move alike in an integer of
    the same size.
    """
    alike = {1: DType.uint8, 2: DType.uint16, 4: DType.uint32}
    raw = weight.to_buffer().view(alike[weight.dtype.size_in_bytes]).to_numpy()
    rows = np.ascontiguousarray(change(raw))
    data = Buffer.from_numpy(rows).view(weight.dtype, rows.shape)
    return WeightData(data, weight.name, weight.dtype, Shape(rows.shape))
