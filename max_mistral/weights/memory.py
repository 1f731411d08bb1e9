"""How many bytes weights take in memory."""

from __future__ import annotations

import math
from pathlib import Path

from max.dtype import DType
from transformers import PretrainedConfig

from ..kernels.packing import packed_shape
from .gguf_encode import encoding_of
from .gguf_header import read_header
from .names import expected_tensors


def bytes_stored(path: Path, *, packed: bool) -> int:
    """Returns the bytes of a file's weights, before any dtype of the graph's counts.

    Args:
        path: A safetensors or GGUF file.
        packed: Whether the CPU kernels take them: some types of GGUF become ten
            times as large for those, and the file's size would say nothing.

    Raises:
        UserError: (a ``ValueError``) if it is no complete GGUF file.
        OSError: If it cannot be read.
    """
    if not packed or path.suffix.lower() != ".gguf":
        return path.stat().st_size
    size = 0
    for tensor in read_header(path, vocabulary=False).tensors.values():
        if len(tensor.shape) == 2:
            size += math.prod(
                packed_shape(encoding_of(tensor.ggml_type), *tensor.shape)
            )
        else:
            size += math.prod(tensor.shape) * DType.float32.size_in_bytes
    return size


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
        stored: The bytes of their files, as :func:`bytes_stored` counts them.
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
