"""The projections of Q, K and V where they are not one ``StackedLinear``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from max.graph import DeviceRef, ShardingStrategy, TensorValue, ops
from max.nn.layer import Module

QKV = ("q_proj", "k_proj", "v_proj")


class QKVProjections(Module):
    """Three projections whose weights are named after them.

    ``max.nn`` calls attention's projections ``qkv_proj``; checkpoints do not.

    Args:
        projections: ``q_proj``, ``k_proj`` and ``v_proj``.
    """

    _omit_module_attr_name = True

    def __init__(self, projections: Mapping[str, Module]) -> None:
        super().__init__()
        for name in QKV:
            setattr(self, name, projections[name])

    @property
    def projections(self) -> list[Any]:
        """The three, in order."""
        return [getattr(self, name) for name in QKV]


class SeparateQKV(QKVProjections):
    """Runs the three one by one."""

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        return ops.concat([project(x) for project in self.projections], axis=-1)

    @property
    def sharding_strategy(self) -> ShardingStrategy | None:
        """How each of the three is shared among devices."""
        return self.projections[0].sharding_strategy

    @sharding_strategy.setter
    def sharding_strategy(self, strategy: ShardingStrategy) -> None:
        for projection in self.projections:
            projection.sharding_strategy = strategy

    def shard(self, devices: Iterable[DeviceRef]) -> list[SeparateQKV]:
        """Returns one shard per device."""
        devices = list(devices)
        shards = [projection.shard(devices) for projection in self.projections]
        return [
            SeparateQKV(dict(zip(QKV, parts, strict=True)))
            for parts in zip(*shards, strict=True)
        ]


class OwnShards:
    """Before a layer of ``max.nn``: its shards are of its class, not ``max.nn``'s."""

    def shard(self, devices: Iterable[DeviceRef]) -> list[Any]:
        """Returns one shard per device."""
        shards = super().shard(devices)  # type: ignore[misc]
        for shard in shards:
            shard.__class__ = type(self)
        return shards
