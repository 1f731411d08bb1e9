"""How many bytes weights take in memory."""

from __future__ import annotations

import math

from max.dtype import DType
from transformers import PretrainedConfig

from .names import expected_tensors


def bytes_in_memory(
    stored: int,
    config: PretrainedConfig,
    dtype: DType | None,
    *,
    tied: bool,
    packed: bool,
    quantized: bool = False,
    restored: bool = False,
) -> int:
    """Returns what one replica's weights take.

    Args:
        stored: The bytes of their files.
        config: The text tower's.
        dtype: Of the graph's weights; None for the files' own.
        tied: Whether the head is the embedding.
        packed: Whether the CPU kernels take them, in the files' encoding.
        quantized: Whether they stay in a checkpoint's quantized format.
        restored: Whether they were quantized and no longer are: ``packed`` ones, or
            those of a GPU, become bfloat16.
    """
    if quantized or (not restored and (packed or dtype is None)):
        return stored
    if packed or dtype is None:
        dtype = DType.bfloat16
    tensors = expected_tensors(config, "graph", tied=tied).values()
    return dtype.size_in_bytes * sum(math.prod(tensor.shape) for tensor in tensors)
