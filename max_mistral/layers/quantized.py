"""What ``max.nn`` lacks for projections in FP8, NVFP4 and GPTQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, ShardingStrategy, TensorValue, ops
from max.graph.quantization import QuantizationEncoding
from max.nn.layer import Module
from max.nn.linear import GPTQLinear, Linear
from max.nn.quant_ops import quantized_matmul
from max.nn.stacked_linear import StackedLinear
from max.support.math import ceildiv

from ..quantization import BLOCK, FP8, GPTQ
from .sharding import OwnShards

QKV = ["q_proj", "k_proj", "v_proj"]


class SeparateQKV(Module):
    """The three projections of attention, run one by one.

    Args:
        projections: ``q_proj``, ``k_proj`` and ``v_proj``.
    """

    # The weights are named after the projections, as StackedLinear's are.
    _omit_module_attr_name = True

    def __init__(self, projections: Mapping[str, Module]) -> None:
        super().__init__()
        for name in QKV:
            setattr(self, name, projections[name])

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        return ops.concat([getattr(self, name)(x) for name in QKV], axis=-1)

    @property
    def sharding_strategy(self) -> ShardingStrategy | None:
        """How each of the three is shared among devices."""
        return getattr(self, QKV[0]).sharding_strategy

    @sharding_strategy.setter
    def sharding_strategy(self, strategy: ShardingStrategy) -> None:
        for name in QKV:
            getattr(self, name).sharding_strategy = strategy

    def shard(self, devices: Iterable[DeviceRef]) -> list[SeparateQKV]:
        """Returns one shard per device."""
        shards = [getattr(self, name).shard(devices) for name in QKV]
        return [
            SeparateQKV(dict(zip(QKV, parts, strict=True)))
            for parts in zip(*shards, strict=True)
        ]


class StaticFP8QKV(OwnShards, StackedLinear):
    """The three projections in one product, each row under its own scale.

    ``StackedLinear`` rounds the weights a second time, to the largest of the
    three scales. With a scale a row, MAX's product takes them as they are. The
    activations' scale is the largest of the three: they are of one input.
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


def scaled_by_rows(
    x: TensorValue, weight: TensorValue, scales: TensorValue
) -> TensorValue:
    """Returns ``x @ weight.T`` with the scales of an FP8 weight's rows applied after.

    MAX's product for blocks, with all their scales 1, where it has none for
    rows; see :func:`..quantization.lacks_scaled_product`. Each token is scaled
    as it comes, 128 columns at a time.

    Args:
        x: bfloat16 ``[tokens, in_dim]``.
        weight: float8_e4m3fn ``[out_dim, in_dim]``.
        scales: float32 ``[out_dim, 1]``.

    Returns:
        bfloat16 ``[tokens, out_dim]``.
    """
    rows, columns = (int(size) for size in weight.shape)
    blocks = FP8("block", static=False).quant_config([], [], fuse_mlp=False)
    ones = ops.broadcast_to(
        ops.constant(1.0, DType.float32, device=DeviceRef.CPU()),
        [ceildiv(rows, BLOCK), ceildiv(columns, BLOCK)],
    )
    y = quantized_matmul(x, weight.to(x.device), ones, None, blocks)
    # [out_dim, 1] -> [1, out_dim]
    scales = scales.to(x.device).reshape([1, rows])
    return ops.cast(ops.cast(y, DType.float32) * scales, x.dtype)


class RowScaledLinear(OwnShards, Linear):
    """A projection that runs as :func:`scaled_by_rows`."""

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, out_dim]``."""
        assert self.weight_scale is not None
        return scaled_by_rows(x, self.weight, self.weight_scale)


class RowScaledQKV(OwnShards, StackedLinear):
    """The three projections in one product, as :func:`scaled_by_rows`."""

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        assert self.stacked_weight_scale is not None
        return scaled_by_rows(x, self.stacked_weight, self.stacked_weight_scale)


def gptq_linear(
    gptq: GPTQ,
    in_dim: int,
    out_dim: int,
    dtype: DType,
    device: DeviceRef,
    **_: Any,
) -> Linear:
    """Returns a GPTQ projection; takes what ``max.nn`` passes its ``linear_cls``."""
    return GPTQLinear(
        in_dim,
        out_dim,
        dtype,
        device,
        quantization_encoding=QuantizationEncoding.GPTQ,
        quantization_config=gptq,
    )
