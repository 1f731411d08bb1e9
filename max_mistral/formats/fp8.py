"""FP8: projections in ``float8_e4m3fn``, with scales beside them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from max.graph.weights import WeightData
from max.nn.float8_scale_stacking import can_use_fused_mlp
from max.nn.linear import Linear
from max.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from max.nn.quant_ops import quantized_matmul
from max.nn.stacked_linear import StackedLinear
from max.support.math import ceildiv

from ..gpu import gpu_architecture, lacks_fast_blocks, lacks_scaled_matmul
from ..weights.dtypes import FLOATS, check_dtype
from ..weights.names import ExpectedTensor
from ..weights.scales import read_scale
from .base import (
    BLOCK,
    Expected,
    Linears,
    convert_float,
    is_projection,
    part_of_projection,
)
from .qkv import OwnShards
from .scaled import QuantizedLayers, ScaledFormat, check_blocks

logger = logging.getLogger("max.pipelines")

# What checkpoints call a scale: Hugging Face's fp8; compressed-tensors, AutoFP8
# and ModelOpt; Mistral's own format.
_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_INPUT_SCALES = ("activation_scale", "input_scale", "qscale_act")


@dataclass(frozen=True)
class FP8(ScaledFormat):
    """Projections in ``float8_e4m3fn``, some of which may be left in bfloat16."""

    NAME = "FP8"
    ENCODING = "float8_e4m3fn"

    scales: Literal["tensor", "channel", "block"]
    """One scale per weight, per row of it, or per 128 x 128 block."""
    static: bool
    """Whether the checkpoint also has one scale per projection for the activations;
    if not, each token is scaled as it comes."""
    row_scales_after_matmul: bool = False
    """Whether weights run through the block-scaled matmul, and their scales, one
    per row, are applied to its result."""

    @property
    def reads_native(self) -> bool:  # type: ignore[override]
        """Only one scale per tensor stays where it is when rows move."""
        return self.scales == "tensor"

    def tensors(
        self, name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData]
    ) -> Expected:
        """See :meth:`WeightFormat.tensors`."""
        expected = {name: tensor}
        if name not in found or found[name].dtype != DType.float8_e4m3fn:
            return expected
        rows, columns = tensor.shape
        shape: tuple[int, ...] = {
            "tensor": (),
            "channel": (rows, 1),
            "block": (math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)),
        }[self.scales]
        expected |= part_of_projection(
            name, tensor, found, "weight_scale", _WEIGHT_SCALES, shape
        )
        if self.static:
            expected |= part_of_projection(
                name, tensor, found, "input_scale", _INPUT_SCALES, ()
            )
        return expected

    def convert(
        self, graph_name: str, weight: WeightData, dtype: DType, source: str
    ) -> WeightData:
        """See :meth:`WeightFormat.convert`."""
        role = graph_name.rpartition(".")[2]
        if role in ("weight_scale", "input_scale"):
            check_dtype(weight, FLOATS, source)
            divides = role == "input_scale"
            return read_scale(weight, source, divides=divides, inverse=False)
        if is_projection(graph_name):
            check_dtype(weight, (DType.float8_e4m3fn, *FLOATS), source)
            if weight.dtype == DType.float8_e4m3fn:
                return weight
        return convert_float(weight, dtype, source)

    def finalize_layers(
        self,
        layers: QuantizedLayers,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        degree: int,
    ) -> FP8:
        """See :meth:`ScaledFormat.finalize_layers`."""
        final = self
        if self.scales != "block" and lacks_scaled_matmul():
            logger.info(
                "MAX has no FP8 matmul with one scale per tensor or per row for this "
                "GPU: the block-scaled one runs%s.",
                ", without the checkpoint's scales of activations"
                if self.static
                else "",
            )
            final = FP8("channel", static=False, row_scales_after_matmul=True)
        # max.nn puts the scales of Q, K and V under each other, and of gate and
        # up; MAX's kernel takes whole blocks of columns.
        blocks = final.row_scales_after_matmul or final.scales == "block"
        check_blocks(widths, BLOCK if blocks else 1, degree)
        if blocks and lacks_fast_blocks():
            logger.warning(
                "On this GPU (%s) MAX 26.7 computes FP8 products without tensor cores, "
                "at a fraction of bfloat16's speed. Run the model's bfloat16 "
                "checkpoint if it fits.",
                gpu_architecture(),
            )
        # RowScaledLinear has no fused gate and up.
        fuse = not final.row_scales_after_matmul and can_use_fused_mlp(
            dict(weights), tensor_wise=self.scales == "tensor" and not self.static
        )
        return replace(final, layers=replace(layers, fuse_mlp=fuse))

    def adapt(self, weights: dict[str, WeightData]) -> dict[str, WeightData]:
        """See :meth:`WeightFormat.adapt`."""
        return row_scales(weights) if self.row_scales_after_matmul else weights

    @cached_property
    def quant_config(self) -> QuantConfig:
        """See :attr:`ScaledFormat.quant_config`."""
        layers = self.layers
        if self.scales == "block":
            config = QuantConfig.blockscaled_fp8(
                mlp_quantized_layers=layers.mlp,
                attn_quantized_layers=layers.self_attn,
                block_size=BLOCK,
            )
            config.can_use_fused_mlp = layers.fuse_mlp
            return config
        whole = self.scales == "tensor"
        return QuantConfig(
            input_scale=InputScaleSpec(
                # MAX pairs weights with one scale with activations with one,
                # and scales the latter by token all the same.
                ScaleGranularity.TENSOR if whole else ScaleGranularity.COLWISE,
                ScaleOrigin.STATIC if self.static else ScaleOrigin.DYNAMIC,
                DType.float32,
            ),
            weight_scale=WeightScaleSpec(
                ScaleGranularity.TENSOR if whole else ScaleGranularity.ROWWISE,
                DType.float32,
            ),
            mlp_quantized_layers=set(layers.mlp),
            attn_quantized_layers=set(layers.self_attn),
            format=QuantFormat.COMPRESSED_TENSORS_FP8,
            can_use_fused_mlp=layers.fuse_mlp,
        )

    def quantized_linears(self) -> Linears:
        """See :meth:`ScaledFormat.quantized_linears`."""
        made_of = Linears(DType.float8_e4m3fn, quant_config=self.quant_config)
        if self.row_scales_after_matmul:
            return replace(made_of, linear_cls=RowScaledLinear, qkv_cls=RowScaledQKV)
        return replace(made_of, qkv_cls=StaticFP8QKV) if self.static else made_of


def row_scales(weights: Mapping[str, WeightData]) -> dict[str, WeightData]:
    """Returns FP8 weights with one scale per row, and none for the activations."""
    changed = {n: w for n, w in weights.items() if not n.endswith(".input_scale")}
    for name, weight in weights.items():
        if name.endswith(".weight_scale"):
            rows = int(weights[name.removesuffix("_scale")].shape[0])
            scale = weight.to_buffer().to_numpy().reshape(-1, 1)
            wide = np.ascontiguousarray(np.broadcast_to(scale, (rows, 1)))
            changed[name] = WeightData.from_numpy(wide, name)
    return changed


class StaticFP8QKV(OwnShards, StackedLinear):
    """Q, K and V in one matmul, each row under its own scale.

    ``StackedLinear`` rounds the weights a second time, to the largest of the
    three scales. With one scale per row, MAX's matmul takes them as they are.
    The activations' scale is the largest of the three: they are of one input.
    """

    def _concat_child_weights(self) -> TensorValue:
        return ops.concat([self._child(name).weight for name in self._names])

    @property
    def stacked_weight_scale(self) -> TensorValue:
        """The scales, float32 ``[sum(out_dims), 1]``."""
        rows = []
        for name in self._names:
            child = self._child(name)
            assert child.weight_scale is not None
            scale = child.weight_scale.reshape([1, 1])
            rows.append(ops.broadcast_to(scale, [child.weight.shape[0], 1]))
        return ops.concat(rows)


def row_scaled_matmul(
    x: TensorValue, weight: TensorValue, scales: TensorValue
) -> TensorValue:
    """Returns ``x @ weight.T`` with the scales of an FP8 weight's rows applied after.

    MAX's block-scaled matmul with all scales of the weight 1, where it has none
    for rows; see :func:`..gpu.lacks_scaled_matmul`. Each token is scaled as it
    comes, 128 columns at a time.

    Args:
        x: bfloat16 ``[tokens, in_dim]``.
        weight: float8_e4m3fn ``[out_dim, in_dim]``.
        scales: float32 ``[out_dim, 1]``.

    Returns:
        bfloat16 ``[tokens, out_dim]``.
    """
    rows, columns = (int(size) for size in weight.shape)
    ones = ops.broadcast_to(
        ops.constant(1.0, DType.float32, device=DeviceRef.CPU()),
        [ceildiv(rows, BLOCK), ceildiv(columns, BLOCK)],
    )
    blocks = FP8("block", static=False).quant_config
    y = quantized_matmul(x, weight.to(x.device), ones, None, blocks)
    # [out_dim, 1] -> [1, out_dim]
    scales = scales.to(x.device).reshape([1, rows])
    return ops.cast(ops.cast(y, DType.float32) * scales, x.dtype)


class RowScaledLinear(OwnShards, Linear):
    """A projection that runs as :func:`row_scaled_matmul`."""

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, out_dim]``."""
        assert self.weight_scale is not None
        return row_scaled_matmul(x, self.weight, self.weight_scale)


class RowScaledQKV(OwnShards, StackedLinear):
    """Q, K and V in one :func:`row_scaled_matmul`."""

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        assert self.stacked_weight_scale is not None
        return row_scaled_matmul(x, self.stacked_weight, self.stacked_weight_scale)
