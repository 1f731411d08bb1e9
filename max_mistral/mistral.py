"""The Mistral graph: embedding, decoder blocks, final norm, head.

One definition serves one device and many. Every activation is a list with one
tensor per device; on one device the lists have one element and no collective
is emitted, on several the blocks run tensor-parallel (Megatron-LM,
https://arxiv.org/abs/1909.08053).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from max import tree
from max.dtype import DType
from max.graph import (
    BufferValue,
    DeviceRef,
    Graph,
    ShardingStrategy,
    TensorValue,
    Type,
    Value,
    default_custom_extensions_scope,
    ops,
)
from max.graph import Module as GraphModule
from max.nn.kv_cache import KVCacheInputsPerDevice, PagedCacheValues
from max.nn.layer import LayerList, Module
from max.nn.transformer.distributed_transformer import (
    DistributedLogitsPostprocessMixin,
)
from max.nn.transformer.transformer import forward_sequential_layers

from . import kernels
from .inputs import input_tree
from .kernels.packing import Encoding
from .layers.attention import query_scale
from .layers.block import MistralBlock, make_norm
from .layers.parallel import make_embedding, make_head, shard
from .layers.rope import ScaledRotaryEmbedding
from .model_config import MistralConfig


class Mistral(DistributedLogitsPostprocessMixin, Module):
    """The whole decoder. Weight names are HF's without the ``model.`` prefix."""

    norm_shards: Sequence[Callable[[TensorValue], TensorValue]]

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        self.devices = config.devices
        self.return_logits = config.return_logits
        self.rope = ScaledRotaryEmbedding(
            config.rope_scaling,
            theta=config.rope_theta,
            head_dim=config.head_dim,
            max_seq_len=config.max_seq_len,
        )
        self.embed_tokens = make_embedding(config)
        self.layers = LayerList(
            [
                MistralBlock(config, self.rope, window, self._encodings(i))
                for i, window in enumerate(config.layer_windows)
            ]
        )
        self.norm = make_norm(config)
        self.norm_shards = shard(self.norm, ShardingStrategy.replicate, config.devices)
        self.lm_head = make_head(config, self.embed_tokens)

    def __call__(
        self,
        tokens: TensorValue,
        input_row_offsets: TensorValue,
        return_n_logits: TensorValue,
        signal_buffers: list[BufferValue],
        kv_collections: list[PagedCacheValues],
    ) -> tuple[TensorValue, ...]:
        """Maps tokens to float32 logits; writes the KV cache as it goes.

        Args:
            tokens: int64 ``[total_seq_len]``.
            input_row_offsets: uint32 ``[batch + 1]``.
            return_n_logits: int64 ``[1]``, on the host.
            signal_buffers: One per device; empty on one device.
            kv_collections: The paged KV cache of each device.

        Returns:
            ``(next_token_logits [batch, vocab_size],)``; with
            ``ReturnLogits.ALL`` or ``VARIABLE`` also ``logits [rows,
            vocab_size]`` and their ``offsets [batch + 1]``.
        """
        hs = self.embed_tokens(tokens, signal_buffers)
        freqs_cis = [self.rope.freqs_cis.to(device) for device in self.devices]
        row_offsets = [input_row_offsets]
        if len(self.devices) > 1:
            row_offsets = ops.distributed_broadcast(input_row_offsets, signal_buffers)

        query_scales = self._query_scales(tokens, row_offsets, kv_collections)

        def layer_inputs(idx: int, hs: list[TensorValue]) -> list[Any]:
            return [
                ops.constant(idx, DType.uint32, device=DeviceRef.CPU()),
                hs,
                signal_buffers,
                kv_collections,
                freqs_cis,
                row_offsets,
                query_scales,
            ]

        hs = forward_sequential_layers(
            list(self.layers),
            inputs_for_layer=layer_inputs,
            initial_hidden_states=hs,
            subgraph_layer_groups=self._layer_groups(),
            weight_prefix_for_layer=lambda idx: f"layers.{idx}.",
        )
        return self._postprocess_logits(
            hs, row_offsets, return_n_logits, signal_buffers
        )

    def _query_scales(
        self,
        tokens: TensorValue,
        row_offsets: list[TensorValue],
        kv_collections: list[PagedCacheValues],
    ) -> list[TensorValue]:
        if self.config.query_scaling is None:
            return []
        beta, original_max_position = self.config.query_scaling
        return [
            query_scale(
                tokens.to(device), rows, kv.cache_lengths, beta, original_max_position
            )
            for device, rows, kv in zip(
                self.devices, row_offsets, kv_collections, strict=True
            )
        ]

    def _encodings(self, layer: int) -> dict[str, Encoding]:
        """How a block's projections are packed, by their last names."""
        prefix = f"layers.{layer}."
        return {
            name.split(".")[-2]: encoding
            for name, encoding in self.config.encodings.items()
            if name.startswith(prefix)
        }

    def _layer_groups(self) -> list[list[int]] | None:
        """Blocks with the same window and encodings share one compiled subgraph."""
        if not self.config.use_subgraphs:
            return None
        groups: dict[object, list[int]] = {}
        for i, window in enumerate(self.config.layer_windows):
            alike = window, tuple(sorted(self._encodings(i).items()))
            groups.setdefault(alike, []).append(i)
        return list(groups.values())

    def input_tree(self) -> OrderedDict[str, object]:
        """Names the graph's inputs; its leaves are their types, in order."""
        return input_tree(self.config.kv_params, self.devices)

    def trace(
        self,
        *input_types: Type[Any],
        name: str | None = None,
        module: GraphModule | None = None,
        custom_extensions: Iterable[Path] = (),
        is_device_graph: bool = False,
    ) -> Graph:
        """Traces :meth:`__call__` into a graph of flat inputs.

        Args:
            *input_types: The leaves of :meth:`input_tree`.
            name: The graph's name; the class's by default.
            module: The MLIR module to add the graph to; a new one by default.
            custom_extensions: Paths of the custom kernels the graph uses.
            is_device_graph: Whether to build a device graph.
        """
        signals = len(self.devices) if len(self.devices) > 1 else 0

        def forward(
            tokens: Value[Any],
            input_row_offsets: Value[Any],
            return_n_logits: Value[Any],
            *rest: Value[Any],
        ) -> tuple[TensorValue, ...]:
            kv_inputs = self.config.kv_params.unflatten_kv_inputs(iter(rest[signals:]))
            return self(
                tokens.tensor,
                input_row_offsets.tensor,
                return_n_logits.tensor,
                [value.buffer for value in rest[:signals]],
                tree.leaves(kv_inputs, leaf=KVCacheInputsPerDevice),
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
