"""Replicas of the model, each on devices of its own, behind one graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace

from max.dtype import DType
from max.graph import BufferValue, TensorValue, ops
from max.graph.weights import WeightData
from max.nn.data_parallelism import split_batch_replicated
from max.nn.kv_cache import PagedCacheValues
from max.nn.layer import LayerList

from .flat_graph import FlatGraph
from .graph_config import GraphConfig
from .mistral import Mistral

# Of a replica's weights, as its place in ``models`` makes it.
_PREFIX = "models.{i}."


class DataParallelMistral(FlatGraph):
    """``data_parallel_degree`` replicas, tensor-parallel if they have several devices.

    Each has weights of its own: to share the first one's would copy the whole
    model from device to device at every step.
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__(config)
        self.width = config.sharing.tensor_parallel_degree
        self.replicas = []
        for i in range(config.data_parallel_degree):
            devices = config.devices[i * self.width : (i + 1) * self.width]
            alone = replace(config, devices=devices, data_parallel_degree=1)
            self.replicas.append(Mistral(alone, prefix=_PREFIX.format(i=i)))
        self.models = LayerList(self.replicas)

    def __call__(
        self,
        tokens: TensorValue,
        input_row_offsets: TensorValue,
        return_n_logits: TensorValue,
        signal_buffers: list[BufferValue],
        kv_collections: list[list[PagedCacheValues]],
        data_parallel_splits: TensorValue | None = None,
        host_row_offsets: TensorValue | None = None,
    ) -> tuple[TensorValue, ...]:
        """Maps tokens to logits as :class:`Mistral` does; see :class:`FlatGraph`."""
        assert data_parallel_splits is not None
        assert host_row_offsets is not None
        first = self.config.devices[0]
        leaders = self.config.devices[:: self.width]
        # By the offsets on the host, for a captured device graph cannot wait for
        # those of the device.
        split_tokens, split_rows = split_batch_replicated(
            leaders,
            [tokens.to(device) for device in leaders],
            [input_row_offsets.to(device) for device in leaders],
            host_row_offsets.cast(DType.int64),
            data_parallel_splits,
        )
        outputs = []
        for i, replica in enumerate(self.replicas):
            mine = slice(i * self.width, (i + 1) * self.width)
            outputs.append(
                replica(
                    split_tokens[i],
                    split_rows[i],
                    return_n_logits,
                    signal_buffers[mine],
                    [caches[mine] for caches in kv_collections],
                )
            )
        logits, *rest = (
            [output.to(first) for output in part] for part in zip(*outputs, strict=True)
        )
        if not rest:
            return (ops.concat(logits),)
        all_logits, (offsets, *others) = rest
        # Each replica counts its rows from 0.
        for other in others:
            offsets = ops.concat([offsets, other[1:] + offsets[-1]])
        return ops.concat(logits), ops.concat(all_logits), offsets


def replica_weights(
    weights: Mapping[str, WeightData], replicas: int
) -> dict[str, WeightData]:
    """Returns the weights under the names of each replica's own."""
    return {
        # Loading changes dtype and shape in place; the data is shared.
        _PREFIX.format(i=i) + name: copy(weight)
        for i in range(replicas)
        for name, weight in weights.items()
    }
