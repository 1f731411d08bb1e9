"""A model as MAX compiles it: a graph with a flat list of inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from max import tree
from max.graph import (
    BufferValue,
    Graph,
    TensorValue,
    Type,
    Value,
    default_custom_extensions_scope,
)
from max.graph import Module as GraphModule
from max.nn.kv_cache import KVCacheInputsPerDevice, PagedCacheValues
from max.nn.layer import Module

from . import kernels
from .graph_config import GraphConfig
from .inputs import input_tree


class FlatGraph(Module):
    """Base of both decoders: names the graph's inputs and traces ``__call__``."""

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        self.config = config

    def input_tree(self) -> OrderedDict[str, Any]:
        """Names the graph's inputs; its leaves are their types, in order."""
        config = self.config
        return input_tree(config.kv_params, config.devices, config.data_parallel_degree)

    @abstractmethod
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
        """Returns the graph's outputs.

        Args:
            tokens: int64 ``[total_seq_len]``.
            input_row_offsets: uint32 ``[batch + 1]``.
            return_n_logits: int64 ``[1]``, on the host.
            signal_buffers: One per device; empty where none share a replica.
            kv_collections: The paged KV caches, each a list with one for each
                device; see :mod:`.kv_cache`.
            data_parallel_splits: int64 ``[replicas + 1]``, on the host: where
                each replica's requests start; ``None`` without replicas.
            host_row_offsets: ``input_row_offsets`` on the host; ``None`` without
                replicas.
        """

    def trace(
        self,
        *input_types: Type[Any],
        name: str | None = None,
        module: GraphModule | None = None,
        custom_extensions: Iterable[Path] = (),
        is_device_graph: bool = False,
    ) -> Graph:
        """Traces :meth:`__call__` into a graph.

        Args:
            *input_types: The leaves of :meth:`input_tree`.
            name: The graph's name; the class's by default.
            module: The MLIR module to add the graph to; a new one by default.
            custom_extensions: Paths of the custom kernels the graph uses.
            is_device_graph: Whether to build a device graph.
        """
        _, structure = tree.flatten(self.input_tree())
        devices = len(self.config.devices)

        def forward(*values: Value[Any]) -> tuple[TensorValue, ...]:
            inputs = tree.unflatten(structure, values)
            batch = {name: value.tensor for name, value in inputs["batch"].items()}
            caches = tree.leaves(inputs["kv"], leaf=KVCacheInputsPerDevice)
            return self(
                batch["tokens"],
                batch["row_offsets"],
                batch["return_n_logits"],
                [value.buffer for value in tree.leaves(inputs["signals"])],
                [caches[i : i + devices] for i in range(0, len(caches), devices)],
                batch.get("data_parallel_splits"),
                batch.get("host_row_offsets"),
            )

        ours = [kernels.library()] if self.config.encodings else []
        # A scope, because the blocks' subgraphs need the kernels too.
        with default_custom_extensions_scope(*ours):
            return Graph(
                name or type(self).__qualname__,
                forward,
                input_types=input_types,
                custom_extensions=list(custom_extensions),
                module=module,
                is_device_graph=is_device_graph,
            )
