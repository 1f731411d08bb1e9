"""How modules are shared among devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
