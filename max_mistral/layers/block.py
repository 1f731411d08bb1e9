"""One decoder block, on one device or tensor-parallel on many."""

from __future__ import annotations

from max.graph import BufferValue, ShardingStrategy, TensorValue, ops
from max.nn.kv_cache import PagedCacheValues
from max.nn.layer import Module
from max.nn.norm import RMSNorm
from max.nn.transformer.distributed_transformer import forward_sharded_layers

from ..graph_config import GraphConfig
from .attention import MistralAttention
from .attention_step import AttentionStep
from .mlp import make_mlp
from .packed import PackedMLP, PackedNorm
from .packed_block import packed_block
from .sharding import shard


def make_norm(config: GraphConfig, cls: type[RMSNorm] = RMSNorm) -> RMSNorm:
    """Returns an RMSNorm over the hidden size."""
    # Llama's order: normalize, cast to the activations' dtype, then scale.
    return cls(
        config.hidden_size,
        config.dtype,
        config.rms_norm_eps,
        multiply_before_cast=False,
    )


def carries_delta(config: GraphConfig) -> bool:
    """Whether a block leaves it to the next one to add its MLP's output.

    There MAX adds and normalizes in one kernel. At a block's end, which is the end of
    a subgraph, the sum would be a kernel of its own, unless the product before it
    adds. Kernels of a block (``scripts/list_kernels.py``):

    =====================  ==================  =======
    the MLP's last matmul  added at its end    carried
    =====================  ==================  =======
    FP8                    13                  12
    GPTQ, cuBLAS           10                  9
    MAX's own, bfloat16    9: it adds          9
    NVFP4                  13: it adds         13
    =====================  ==================  =======

    An all-reduce adds too; before it nothing is carried.

    On packed weights, on a CPU, a block is one operation.
    """
    return not config.encodings and len(config.devices) == 1


def add_delta(state: list[TensorValue], devices: int) -> list[TensorValue]:
    """Returns hidden states, one per device.

    Args:
        state: Hidden states and, where blocks carry it, what is to be added to
            them: ``[total_seq_len, hidden_size]`` each.
        devices: How many share the block.
    """
    hs, delta = state[:devices], state[devices:]
    return [h + x for h, x in zip(hs, delta, strict=True)] if delta else hs


class MistralBlock(Module):
    """A pre-norm decoder block: attention, then SwiGLU, each with a residual.

    HF ``modeling_mistral.py``, ``MistralDecoderLayer.forward``, but that the
    MLP's output may be carried to the next block: see :func:`carries_delta`.

    Args:
        config: The model's config.
        layer: Which block this is.
    """

    def __init__(self, config: GraphConfig, layer: int) -> None:
        super().__init__()
        self.carries_delta = carries_delta(config)
        self.self_attn = MistralAttention.of(config, layer)
        self.mlp = make_mlp(config, layer)
        norm = PackedNorm if config.layer_encodings(layer) else RMSNorm
        self.input_layernorm = make_norm(config, norm)
        self.post_attention_layernorm = make_norm(config, norm)

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
        state: list[TensorValue],
        signal_buffers: list[BufferValue],
        kv_collections: list[PagedCacheValues],
        freqs_cis: list[TensorValue],
        input_row_offsets: list[TensorValue],
        query_scales: list[TensorValue],
        last_tokens: list[TensorValue],
    ) -> list[TensorValue]:
        """Maps hidden states to hidden states, ``[total_seq_len, hidden_size]`` each.

        Args:
            layer_idx: uint32 scalar, the layer's place in the KV cache.
            state: Hidden states, a copy per device; where blocks carry it, then as
                many of what the block before added to them.
            signal_buffers: One per device; empty on one device.
            kv_collections: The paged KV cache of each device.
            freqs_cis: Rotary cosines and sines, ``[max_seq_len * 2, head_dim]``.
            input_row_offsets: uint32 ``[batch + 1]``, a copy per device.
            query_scales: float32 ``[total_seq_len]``, a copy per device; empty
                where queries are not scaled.
            last_tokens: Where blocks are packed a uint32 scalar, of how many of each
                request's last tokens the output is read; else empty.

        Returns:
            As ``state``.
        """

        def all_reduce(xs: list[TensorValue]) -> list[TensorValue]:
            if len(xs) == 1:
                return xs
            return ops.allreduce.sum(xs, signal_buffers)

        hs = add_delta(state, len(self._attention))
        scales: list[TensorValue | None] = [*query_scales] or [None] * len(hs)
        steps = [
            AttentionStep(layer_idx, kv, freqs, rows, scale)
            for kv, freqs, rows, scale in zip(
                kv_collections, freqs_cis, input_row_offsets, scales, strict=True
            )
        ]
        if isinstance(self.mlp, PackedMLP):  # on one CPU
            norms = [*self._input_norm, *self._post_norm]
            block = packed_block(
                hs[0], self.self_attn, self.mlp, norms, steps[0], *last_tokens
            )
            return [block]
        normed = forward_sharded_layers(self._input_norm, hs)
        attended = [
            attention(x, step)
            for attention, x, step in zip(self._attention, normed, steps, strict=True)
        ]
        projected = [
            attention.o_proj(x)
            for attention, x in zip(self._attention, attended, strict=True)
        ]
        hs = [h + x for h, x in zip(hs, all_reduce(projected), strict=True)]
        normed = forward_sharded_layers(self._post_norm, hs)
        fed = all_reduce(forward_sharded_layers(self._mlp, normed))
        state = [*hs, *fed]
        return state if self.carries_delta else add_delta(state, len(hs))
