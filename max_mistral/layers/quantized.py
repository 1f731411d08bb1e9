"""What ``max.nn`` lacks for projections in FP8 and in GPTQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from max.graph.quantization import QuantizationEncoding
from max.nn.layer import Module
from max.nn.linear import GPTQLinear, Linear
from max.nn.stacked_linear import StackedLinear

from ..quantization import GPTQ

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


class StaticFP8QKV(StackedLinear):
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

    def shard(self, devices: Iterable[DeviceRef]) -> list[StackedLinear]:
        """Returns one shard per device, of this class."""
        shards = super().shard(devices)
        for shard in shards:
            shard.__class__ = StaticFP8QKV
        return shards


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
