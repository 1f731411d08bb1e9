"""How modules are shared among devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from max.graph import DeviceRef, ShardingStrategy


def shard(
    module: Any,
    strategy: Callable[[int], ShardingStrategy],
    devices: list[DeviceRef],
) -> Sequence[Any]:
    """Returns one shard of ``module`` per device; on one device, itself.

    Args:
        module: A ``max.nn`` ``Shardable`` module.
        strategy: A constructor such as ``ShardingStrategy.tensor_parallel``.
        devices: Where the shards live.
    """
    if len(devices) == 1:
        return [module]
    module.sharding_strategy = strategy(len(devices))
    return module.shard(devices)


class OwnShards:
    """Before a layer of ``max.nn``: its shards are of its class, not ``max.nn``'s."""

    def shard(self, devices: Iterable[DeviceRef]) -> list[Any]:
        """Returns one shard per device."""
        shards = super().shard(devices)  # type: ignore[misc]
        for shard in shards:
            shard.__class__ = type(self)
        return shards
