"""FP8 with one scale per row on GPUs where MAX has only the block-scaled matmul."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from max.graph.weights import WeightData
from max.nn.linear import Linear
from max.nn.quant_config import QuantConfig
from max.nn.quant_ops import quantized_matmul
from max.nn.stacked_linear import StackedLinear
from max.support.math import ceildiv

from .base import BLOCK
from .qkv import OwnShards


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
    blocks = QuantConfig.blockscaled_fp8(
        mlp_quantized_layers=set(), attn_quantized_layers=set(), block_size=BLOCK
    )
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
