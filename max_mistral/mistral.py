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
    ops,
)
from max.graph import Module as GraphModule
from max.nn.attention import AttentionWithRope, MHAMaskVariant
from max.nn.kv_cache import KVCacheInputsPerDevice, PagedCacheValues
from max.nn.layer import LayerList, Module
from max.nn.linear import MLP
from max.nn.norm import RMSNorm
from max.nn.rotary_embedding import RotaryEmbedding
from max.nn.transformer.distributed_transformer import (
    DistributedLogitsPostprocessMixin,
    forward_sharded_layers,
)
from max.nn.transformer.transformer import forward_sequential_layers

from .inputs import input_tree
from .layers.parallel import make_embedding, make_head, shard
from .model_config import MistralConfig


def _make_norm(config: MistralConfig) -> RMSNorm:
    # Llama's order: normalize, cast to the activations' dtype, then scale.
    return RMSNorm(
        config.hidden_size,
        config.dtype,
        config.rms_norm_eps,
        multiply_before_cast=False,
    )


class MistralBlock(Module):
    """A pre-norm decoder block: attention, then SwiGLU, each with a residual.

    HF ``modeling_mistral.py``, ``MistralDecoderLayer.forward``.
    """

    def __init__(self, config: MistralConfig, rope: RotaryEmbedding) -> None:
        super().__init__()
        # The mask variant and the window only act together: one without the
        # other is silently causal.
        window = config.effective_sliding_window
        self.self_attn = AttentionWithRope(
            rope=rope,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            hidden_size=config.hidden_size,
            kv_params=config.kv_params,
            devices=config.devices,
            dtype=config.dtype,
            scale=config.attention_multiplier,
            mask_variant=(
                MHAMaskVariant.CAUSAL_MASK
                if window is None
                else MHAMaskVariant.SLIDING_WINDOW_CAUSAL_MASK
            ),
            sliding_window=window,
        )
        self.mlp = MLP(
            config.dtype,
            None,
            config.hidden_size,
            config.feed_forward_length,
            config.devices,
        )
        self.input_layernorm = _make_norm(config)
        self.post_attention_layernorm = _make_norm(config)

        devices = config.devices
        split, copy = (
            ShardingStrategy.tensor_parallel,
            ShardingStrategy.replicate,
        )
        self._attention = shard(self.self_attn, split, devices)
        self._mlp = shard(self.mlp, split, devices)
        self._input_norm = shard(self.input_layernorm, copy, devices)
        self._post_norm = shard(self.post_attention_layernorm, copy, devices)

    def __call__(
        self,
        layer_idx: TensorValue,
        hs: list[TensorValue],
        signal_buffers: list[BufferValue],
        kv_collections: list[PagedCacheValues],
        freqs_cis: list[TensorValue],
        input_row_offsets: list[TensorValue],
    ) -> list[TensorValue]:
        """Maps hidden states to hidden states, ``[total_seq_len, hidden_size]`` each.

        Args:
            layer_idx: uint32 scalar, the layer's place in the KV cache.
            hs: Hidden states, a copy per device.
            signal_buffers: One per device; empty on one device.
            kv_collections: The paged KV cache of each device.
            freqs_cis: Rotary cosines and sines, ``[max_seq_len * 2, head_dim]``.
            input_row_offsets: uint32 ``[batch + 1]``, a copy per device.
        """

        def all_reduce(xs: list[TensorValue]) -> list[TensorValue]:
            if len(xs) == 1:
                return xs
            return ops.allreduce.sum(xs, signal_buffers)

        normed = forward_sharded_layers(self._input_norm, hs)
        attended = [
            attention(layer_idx, x, kv, freqs_cis=freqs, input_row_offsets=rows)
            for attention, x, kv, freqs, rows in zip(
                self._attention,
                normed,
                kv_collections,
                freqs_cis,
                input_row_offsets,
                strict=True,
            )
        ]
        hs = [h + x for h, x in zip(hs, all_reduce(attended), strict=True)]
        normed = forward_sharded_layers(self._post_norm, hs)
        fed = forward_sharded_layers(self._mlp, normed)
        return [h + x for h, x in zip(hs, all_reduce(fed), strict=True)]


class Mistral(DistributedLogitsPostprocessMixin, Module):
    """The whole decoder. Weight names are HF's without the ``model.`` prefix."""

    norm_shards: Sequence[Callable[[TensorValue], TensorValue]]

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        self.devices = config.devices
        self.return_logits = config.return_logits
        self.rope = RotaryEmbedding(
            dim=config.hidden_size,
            n_heads=config.num_attention_heads,
            theta=config.rope_theta,
            max_seq_len=config.max_seq_len,
            head_dim=config.head_dim,
            # HF checkpoints pair dimension i with i + head_dim / 2.
            interleaved=False,
        )
        self.embed_tokens = make_embedding(config)
        self.layers = LayerList(
            [MistralBlock(config, self.rope) for _ in range(config.num_hidden_layers)]
        )
        self.norm = _make_norm(config)
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

        def layer_inputs(idx: int, hs: list[TensorValue]) -> list[Any]:
            return [
                ops.constant(idx, DType.uint32, device=DeviceRef.CPU()),
                hs,
                signal_buffers,
                kv_collections,
                freqs_cis,
                row_offsets,
            ]

        hs = forward_sequential_layers(
            list(self.layers),
            inputs_for_layer=layer_inputs,
            initial_hidden_states=hs,
            # All blocks are alike, so one compiled subgraph serves them all.
            subgraph_layer_groups=(
                [list(range(len(self.layers)))] if self.config.use_subgraphs else None
            ),
            weight_prefix_for_layer=lambda idx: f"layers.{idx}.",
        )
        return self._postprocess_logits(
            hs, row_offsets, return_n_logits, signal_buffers
        )

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

        return Graph(
            name or type(self).__qualname__,
            forward,
            input_types=input_types,
            custom_extensions=list(custom_extensions),
            module=module,
            is_device_graph=is_device_graph,
        )
