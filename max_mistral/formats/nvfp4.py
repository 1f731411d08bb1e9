"""NVFP4: projections of 4 bits with a scale for every 16, and activations too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData
from max.nn.float8_scale_stacking import can_use_fused_mlp
from max.nn.quant_config import NVFP4_BLOCK_SIZE, QuantConfig

from ..errors import UserError
from ..gpu import gpu_architecture
from ..weights.dtypes import FLOATS, check_dtype
from ..weights.names import ExpectedTensor
from ..weights.scales import read_scale
from .base import (
    Expected,
    Linears,
    convert_float,
    is_projection,
    part_of_projection,
)
from .scaled import QuantizedLayers, ScaledFormat, check_blocks

# The parts of a weight as ModelOpt and MAX call them, and compressed-tensors.
_PARTS = {
    "weight": "weight_packed",
    "weight_scale": "weight_scale",
    "weight_scale_2": "weight_global_scale",
    "input_scale": "input_global_scale",
}


@dataclass(frozen=True)
class NVFP4(ScaledFormat):
    """Projections in ``float4_e2m1fn``, some of which may be left in bfloat16.

    Two numbers per byte, the even column in its lower half; one
    ``float8_e4m3fn`` scale per 16 columns of a row, one float32 scale per weight,
    and one per projection for its activations, which are rounded to the same
    format as they come.
    """

    NAME = "NVFP4"
    ENCODING = "float4_e2m1fnx2"

    compressed: bool
    """Whether the checkpoint is one of compressed-tensors, not of ModelOpt: its
    names differ, and it has the inverses of the float32 scales."""
    separate_qkv: bool = False
    """Whether Q, K and V run as three matmuls, because their scales differ and one
    matmul has one."""

    def check_runs(self, devices: Sequence[DeviceRef], dtype: DType) -> None:
        """See :meth:`WeightFormat.check_runs`."""
        super().check_runs(devices, dtype)
        gpu = gpu_architecture() or ""
        if gpu and not gpu.startswith("sm_10"):
            raise UserError(
                "The checkpoint is quantized in NVFP4, whose matmul MAX has for "
                f"Blackwell (sm_100, sm_103) only; this GPU is {gpu}. Run the model's "
                "FP8 or bfloat16 checkpoint here."
            )

    def tensors(
        self, name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData]
    ) -> Expected:
        """See :meth:`WeightFormat.tensors`."""
        if name in found and found[name].dtype in FLOATS:
            return {name: tensor}
        rows, columns = tensor.shape
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (rows, columns // 2),
            "weight_scale": (rows, math.ceil(columns / NVFP4_BLOCK_SIZE)),
            "weight_scale_2": (),
            "input_scale": (),
        }
        expected: Expected = {}
        for role, compressed in _PARTS.items():
            spelling = compressed if self.compressed else role
            expected |= part_of_projection(
                name, tensor, found, role, [spelling], shapes[role]
            )
        return expected

    def convert(
        self, graph_name: str, weight: WeightData, dtype: DType, source: str
    ) -> WeightData:
        """See :meth:`WeightFormat.convert`."""
        role = graph_name.rpartition(".")[2]
        if role == "weight_scale":
            check_dtype(weight, (DType.float8_e4m3fn,), source)
            return weight
        if role in ("weight_scale_2", "input_scale"):
            check_dtype(weight, FLOATS, source)
            divides = self.compressed or role == "input_scale"
            return read_scale(weight, source, divides=divides, inverse=self.compressed)
        if is_projection(graph_name):
            check_dtype(weight, (DType.uint8, *FLOATS), source)
            if weight.dtype == DType.uint8:
                return weight
        return convert_float(weight, dtype, source)

    def finalize_layers(
        self,
        layers: QuantizedLayers,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        degree: int,
    ) -> NVFP4:
        """See :meth:`ScaledFormat.finalize_layers`."""
        # MAX's kernel reads the scales of four groups of columns together, and
        # fills up the last four: not where the next device's begin.
        block = 4 * NVFP4_BLOCK_SIZE if degree > 1 else 1
        columns = {name: widths[name] for name in ("query", "MLP")}
        check_blocks(columns, block, degree)
        fuse = can_use_fused_mlp(dict(weights), tensor_wise=False)
        return replace(
            self,
            layers=replace(layers, fuse_mlp=fuse),
            separate_qkv=not _qkv_have_one_scale(weights),
        )

    @cached_property
    def quant_config(self) -> QuantConfig:
        """See :attr:`ScaledFormat.quant_config`."""
        return QuantConfig.nvfp4(
            attn_quantized_layers=self.layers.self_attn,
            mlp_quantized_layers=self.layers.mlp,
            can_use_fused_mlp=self.layers.fuse_mlp,
        )

    def quantized_linears(self) -> Linears:
        """See :meth:`ScaledFormat.quantized_linears`."""
        made_of = Linears(DType.uint8, quant_config=self.quant_config)
        return replace(made_of, qkv_cls=None) if self.separate_qkv else made_of


def _qkv_have_one_scale(weights: Mapping[str, WeightData]) -> bool:
    # One matmul of Q, K and V has one scale of each kind; max.nn takes the
    # largest of the three, whatever the others are.
    for name, scale in weights.items():
        if name.endswith((".q_proj.weight_scale_2", ".q_proj.input_scale")):
            for other in (".k_proj.", ".v_proj."):
                alike = weights[name.replace(".q_proj.", other)]
                if alike.to_buffer().item() != scale.to_buffer().item():
                    return False
    return True
