"""Tensors of a checkpoint, packed for the CPU kernels one by one.

Each is read and packed some rows at a time, so loading takes little more memory
than the packed weights do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from max.pipelines.lib import PipelineConfig

from .. import kernels
from ..kernels import KernelMode
from ..kernels.narrow import TooManyExponentsError
from ..kernels.packing import Encoding, pack, pack_rows, packed_shape
from ..kernels.pieces import Bytes
from .finite import check_bytes
from .heads import split_rotary
from .kept import KeptMatrices
from .stored import Stored

ENCODINGS = {
    DType.float32: Encoding.F32,
    DType.bfloat16: Encoding.BF16,
    DType.float16: Encoding.F16,
}

# Fewer take about as much room in 12 bits as in 16, or more.
_LEAST_COLUMNS = 64

logger = logging.getLogger("max.pipelines")


@dataclass
class PackedWeight(WeightData):
    """A packed weight, uint8 ``[panels, panel_bytes]``."""

    encoding: Encoding = Encoding.F32


def runs_packed(
    pipeline_config: PipelineConfig, kernel_mode: KernelMode | None = None
) -> bool:
    """Whether the model runs on packed weights: on a CPU, with the kernels on.

    Args:
        pipeline_config: Has the devices.
        kernel_mode: By default what the environment says.
    """
    return (kernel_mode or kernels.mode()) != "off" and on_cpu(pipeline_config)


def on_cpu(pipeline_config: PipelineConfig) -> bool:
    """Whether the model runs on a CPU."""
    devices = pipeline_config.model.device_specs
    return all(device.device_type == "cpu" for device in devices)


def encodings_of(weights: Mapping[str, WeightData]) -> dict[str, Encoding]:
    """Returns how each packed weight is encoded.

    Args:
        weights: The tensors by their names in the graph.
    """
    return {
        name: weight.encoding
        for name, weight in weights.items()
        if isinstance(weight, PackedWeight)
    }


def pack_matrix(
    name: str,
    data: Stored | Callable[[], Bytes],
    shape: tuple[int, ...],
    encoding: Encoding,
    tensor: str,
    source: str,
    heads: int | None = None,
    kept: KeptMatrices | None = None,
) -> PackedWeight:
    """Reads, checks and packs a matrix, or takes it as an earlier start packed it.

    Args:
        name: Its name in the graph.
        data: Where its bytes are, or what returns them, row by row.
        shape: ``(rows, columns)``.
        encoding: What the bytes are.
        tensor: Its name in the checkpoint, for messages.
        source: What to call the checkpoint in them.
        heads: For a Q or K projection in the rotary order of Mistral or
            llama.cpp, how many heads it has.
        kept: Those of an earlier start; by default none.

    Returns:
        The packed matrix; of BF16 in 12 bits, where :func:`may_be_narrow` and its
        exponents fit.

    Raises:
        UserError: (a ``ValueError``) if a number is NaN or infinite, or the file
            became shorter since its header was read.
    """
    rows, columns = shape
    matrices = kept or KeptMatrices()
    # Of a callable once, also if its bytes are packed twice.
    source_of = data if isinstance(data, Stored) else functools.cache(data)

    def file(to: Encoding) -> tuple[str, tuple[int, int]]:
        named = f"{name}.{rows}x{columns}.{to.name}.{heads or 0}"
        return named, packed_shape(to, rows, columns)

    def packed(to: Encoding) -> PackedWeight:
        array = matrices.matrix(
            *file(to),
            lambda: _packed(
                *(source_of, rows, columns, encoding, to, tensor, source, heads)
            ),
        )
        return PackedWeight(array, name, DType.uint8, Shape(array.shape), encoding=to)

    if may_be_narrow(encoding, columns):
        narrow = Encoding.BF16_IN_12_BITS
        # An earlier start may have found that it does not fit.
        if matrices.has(*file(narrow)) or not matrices.has(*file(encoding)):
            with suppress(TooManyExponentsError):
                return packed(narrow)
            logger.debug("%s of %s stays in 16 bits", tensor, source)
    return packed(encoding)


def may_be_narrow(encoding: Encoding, columns: int) -> bool:
    """Whether to try to keep a matrix of bfloat16 in 12 bits.

    Not where AMX takes whole panels of bfloat16, nor without AVX512-BF16, where nobody
    has measured it; nor with few columns, where it would save little or nothing.
    """
    blocks = Encoding.BF16_IN_12_BITS.block_columns
    whole = columns >= _LEAST_COLUMNS and columns % blocks == 0
    fast = kernels.has_bfloat16() and not kernels.has_amx()
    return encoding == Encoding.BF16 and whole and fast


def _packed(
    data: Stored | Callable[[], Bytes],
    rows: int,
    columns: int,
    encoding: Encoding,
    to: Encoding,
    tensor: str,
    source: str,
    heads: int | None,
) -> Bytes:
    """Packs a matrix some rows at a time; see :func:`pack_matrix`.

    ``encoding`` is what the bytes are, ``to`` the same or what they become.
    """
    width = columns // encoding.block_columns * encoding.block_bytes
    if heads is not None:
        # Its rows move through the whole matrix.
        whole = data.read() if isinstance(data, Stored) else data()
        check_bytes(tensor, whole, encoding, columns, source)
        return pack(split_rotary(whole.reshape(rows, width), heads), to, columns)
    stored = data if isinstance(data, Stored) else data().reshape(-1).view(np.uint8)
    assert stored.size == rows * width

    def some_rows(start: int, end: int) -> Bytes:
        first, length = start * width, (end - start) * width
        if isinstance(stored, Stored):
            part = stored.read(first, length)
        else:
            part = stored[first : first + length]
        check_bytes(tensor, part, encoding, columns, source, first_row=start)
        return part.reshape(end - start, width)

    return pack_rows(some_rows, rows, to, columns)
