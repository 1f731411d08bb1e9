"""Tensors of a checkpoint, packed for the CPU kernels one by one.

Each is read, packed and let go before the next, so loading takes little more
memory than the packed weights do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from max.pipelines.lib import PipelineConfig

from .. import kernels
from ..kernels import KernelMode
from ..kernels.packing import Encoding, pack
from .heads import split_rotary

ENCODINGS = {
    DType.float32: Encoding.F32,
    DType.bfloat16: Encoding.BF16,
    DType.float16: Encoding.F16,
}


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
    data: npt.NDArray[np.uint8],
    shape: tuple[int, ...],
    encoding: Encoding,
    heads: int | None = None,
) -> PackedWeight:
    """Packs a matrix.

    Args:
        name: Its name in the graph.
        data: Its bytes, row by row.
        shape: ``(rows, columns)``.
        encoding: What the bytes are.
        heads: For a Q or K projection in the rotary order of Mistral or
            llama.cpp, how many heads it has.
    """
    rows, columns = shape
    lines = data.reshape(rows, -1)
    blocks = columns // encoding.block_columns
    assert lines.shape[1] == blocks * encoding.block_bytes
    if heads is not None:
        lines = split_rotary(lines, heads)
    array = pack(lines, encoding, columns)
    return PackedWeight(array, name, DType.uint8, Shape(array.shape), encoding=encoding)
