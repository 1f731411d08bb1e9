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
from .inputs import input_tree
from .model_config import MistralConfig


class FlatGraph(Module):
    """What names its inputs and is traced into a graph of them."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config

    def input_tree(self) -> OrderedDict[str, object]:
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
        inputs = self.input_tree()
        replicated = self.config.data_parallel_degree > 1
        signals = len(tree.leaves(inputs.get("signals", [])))
        devices = len(self.config.devices)

        def forward(
            tokens: Value[Any],
            input_row_offsets: Value[Any],
            return_n_logits: Value[Any],
            *rest: Value[Any],
        ) -> tuple[TensorValue, ...]:
            splits = None
            if replicated:
                splits, rest = rest[0].tensor, rest[1:]
            kv_inputs = self.config.kv_params.unflatten_kv_inputs(iter(rest[signals:]))
            caches = tree.leaves(kv_inputs, leaf=KVCacheInputsPerDevice)
            return self(
                tokens.tensor,
                input_row_offsets.tensor,
                return_n_logits.tensor,
                [value.buffer for value in rest[:signals]],
                [caches[i : i + devices] for i in range(0, len(caches), devices)],
                splits,
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
