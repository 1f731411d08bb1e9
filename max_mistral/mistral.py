"""The Mistral graph: embedding, decoder blocks, final norm, head.

What it can do, and where:

- grouped-query attention, head_dim of any size     layers/attention.py
- sliding windows, on all layers or on some         layers/attention.py, kv_cache.py
- SwiGLU                                            layers/mlp.py
- RoPE: linear, Llama 3, YaRN                       layers/rope.py, rope_frequencies.py
- queries scaled by position (Ministral 3)          layers/query_scale.py
- tied embeddings                                   layers/embed_head.py
- FP8, NVFP4 and GPTQ on GPUs                       formats/
- packed weights on a CPU, in any GGUF encoding     layers/packed_block.py, kernels/
- tensor-parallel, with copied key-value heads      sharing.py, layers/sharding.py
- replicas                                          data_parallel.py
- embeddings of texts in place of logits            layers/pooling.py, embeddings/

One definition serves one device and many. Every activation is a list with one
tensor per device; on one device the lists have one element and there is no
collective. On several the blocks run tensor-parallel (Megatron-LM,
https://arxiv.org/abs/1909.08053).

Beware: MAX's attention is silently causal unless the mask variant and the
window are given together, and a weight that is not loaded is zeros unless
``load_state_dict`` is strict. Both have one place: ``layers/attention.py`` and
``build.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from max.dtype import DType
from max.graph import (
    BufferValue,
    DeviceRef,
    ShardingStrategy,
    TensorValue,
    ops,
)
from max.nn.kv_cache import PagedCacheValues
from max.nn.layer import LayerList
from max.nn.transformer import ReturnLogits
from max.nn.transformer.distributed_transformer import (
    DistributedLogitsPostprocessMixin,
)
from max.nn.transformer.transformer import forward_sequential_layers

from .flat_graph import FlatGraph
from .graph_config import GraphConfig
from .layers.block import MistralBlock, add_delta, carries_delta, make_norm
from .layers.embed_head import make_embedding, make_head
from .layers.pooling import pool_last
from .layers.query_scale import query_scale
from .layers.rope import ScaledRotaryEmbedding
from .layers.sharding import shard

# More tokens than a request has.
_ALL = 2**32 - 1


class Mistral(DistributedLogitsPostprocessMixin, FlatGraph):
    """The whole decoder. Weight names are HF's without the ``model.`` prefix.

    Args:
        config: The model's config.
        prefix: Stands before the names of weights and subgraphs, where the
            graph holds several decoders.
    """

    norm_shards: Sequence[Callable[[TensorValue], TensorValue]]

    def __init__(self, config: GraphConfig, prefix: str = "") -> None:
        super().__init__(config)
        self.prefix = prefix
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
            [MistralBlock(config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = make_norm(config)
        self.norm_shards = shard(self.norm, ShardingStrategy.replicate, config.devices)
        if not config.embeds:
            self.lm_head = make_head(config, self.embed_tokens)

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
        """Maps tokens to float32 logits; writes the KV cache as it goes.

        Args:
            tokens: int64 ``[total_seq_len]``.
            input_row_offsets: uint32 ``[batch + 1]``.
            return_n_logits: int64 ``[1]``, on the host.
            signal_buffers: One per device; empty on one device.
            kv_collections: The paged KV caches, each a list with one for each
                device; see :mod:`.kv_cache`.
            data_parallel_splits: ``None``: this is one replica.
            host_row_offsets: ``None`` too.

        Returns:
            ``(next_token_logits [batch, vocab_size],)``; with
            ``ReturnLogits.ALL`` or ``VARIABLE`` also ``logits [rows,
            vocab_size]`` and their ``offsets [batch + 1]``. A model that embeds
            returns ``(embeddings [batch, hidden_size],)`` of length 1 instead.
        """
        assert data_parallel_splits is None
        assert host_row_offsets is None
        hs = self.embed_tokens(tokens, signal_buffers)
        # Cast once: in a block each would cast the whole table.
        table = ops.cast(self.rope.freqs_cis, self.config.dtype)
        freqs_cis = [table.to(device) for device in self.devices]
        row_offsets = [input_row_offsets]
        if len(self.devices) > 1:
            row_offsets = ops.distributed_broadcast(input_row_offsets, signal_buffers)

        query_scales = self._query_scales(tokens, row_offsets, kv_collections[0])

        host = DeviceRef.CPU()

        def layer_inputs(idx: int, state: list[TensorValue]) -> list[Any]:
            group, place = self.config.kv_places[idx]
            last_tokens = []
            if self.config.encodings:
                last_tokens = [ops.constant(self._tokens_read(idx), DType.uint32, host)]
            return [
                ops.constant(place, DType.uint32, host),
                state,
                signal_buffers,
                kv_collections[group],
                freqs_cis,
                row_offsets,
                query_scales,
                last_tokens,
            ]

        state = hs
        if carries_delta(self.config):
            # Nothing yet; so the first block shares a subgraph with the others.
            zero = ops.constant(0, self.config.dtype, device=DeviceRef.CPU())
            state = hs + [zero.to(h.device).broadcast_to(h.shape) for h in hs]
        state = forward_sequential_layers(
            list(self.layers),
            inputs_for_layer=layer_inputs,
            initial_hidden_states=state,
            subgraph_layer_groups=self._layer_groups(),
            name_for_subgraph=lambda group: f"{self.prefix}transformer_block_{group}",
            weight_prefix_for_layer=lambda idx: f"{self.prefix}layers.{idx}.",
        )
        hs = add_delta(state, len(self.devices))
        if self.config.embeds:
            return (pool_last(self.norm_shards[0], hs[0], row_offsets[0]),)
        return self._postprocess_logits(
            hs, row_offsets, return_n_logits, signal_buffers
        )

    def _tokens_read(self, layer: int) -> int:
        """Returns of how many of each request's last tokens a block's output is read.

        Of the last block only that of tokens whose logits, or embedding, are returned.
        """
        if layer < self.config.num_hidden_layers - 1:
            return _ALL
        one = self.config.embeds or self.return_logits == ReturnLogits.LAST_TOKEN
        return 1 if one else _ALL

    def _query_scales(
        self,
        tokens: TensorValue,
        row_offsets: list[TensorValue],
        kv_collections: list[PagedCacheValues],
    ) -> list[TensorValue]:
        if self.config.query_scaling is None:
            return []
        beta, original_max_position = self.config.query_scaling
        if self.config.max_seq_len <= original_max_position:
            return []  # It would be 1 everywhere.
        return [
            query_scale(
                tokens.to(device), rows, kv.cache_lengths, beta, original_max_position
            )
            for device, rows, kv in zip(
                self.devices, row_offsets, kv_collections, strict=True
            )
        ]

    def _layer_groups(self) -> list[list[int]] | None:
        """Blocks that differ in their weights only share one compiled subgraph."""
        if not self.config.shares_blocks:
            return None
        groups: dict[object, list[int]] = {}
        for i in range(self.config.num_hidden_layers):
            groups.setdefault(self.config.layer_kind(i), []).append(i)
        return list(groups.values())
