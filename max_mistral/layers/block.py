"""One decoder block, on one device or tensor-parallel on many."""

from __future__ import annotations

from max.graph import BufferValue, ShardingStrategy, TensorValue, ops
from max.nn.kv_cache import PagedCacheValues
from max.nn.layer import Module
from max.nn.norm import RMSNorm
from max.nn.transformer.distributed_transformer import forward_sharded_layers

from ..model_config import MistralConfig
from .attention import MistralAttention
from .mlp import make_mlp
from .packed import PackedNorm
from .sharding import shard


def make_norm(config: MistralConfig, cls: type[RMSNorm] = RMSNorm) -> RMSNorm:
    """Returns an RMSNorm over the hidden size."""
    # Llama's order: normalize, cast to the activations' dtype, then scale.
    return cls(
        config.hidden_size,
        config.dtype,
        config.rms_norm_eps,
        multiply_before_cast=False,
    )


class MistralBlock(Module):
    """A pre-norm decoder block: attention, then SwiGLU, each with a residual.

    HF ``modeling_mistral.py``, ``MistralDecoderLayer.forward``.

    Args:
        config: The model's config.
        layer: Which block this is.
    """

    def __init__(self, config: MistralConfig, layer: int) -> None:
        super().__init__()
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
        hs: list[TensorValue],
        signal_buffers: list[BufferValue],
        kv_collections: list[PagedCacheValues],
        freqs_cis: list[TensorValue],
        input_row_offsets: list[TensorValue],
        query_scales: list[TensorValue],
    ) -> list[TensorValue]:
        """Maps hidden states to hidden states, ``[total_seq_len, hidden_size]`` each.

        Args:
            layer_idx: uint32 scalar, the layer's place in the KV cache.
            hs: Hidden states, a copy per device.
            signal_buffers: One per device; empty on one device.
            kv_collections: The paged KV cache of each device.
            freqs_cis: Rotary cosines and sines, ``[max_seq_len * 2, head_dim]``.
            input_row_offsets: uint32 ``[batch + 1]``, a copy per device.
            query_scales: float32 ``[total_seq_len]``, a copy per device; empty
                where queries are not scaled.
        """

        def all_reduce(xs: list[TensorValue]) -> list[TensorValue]:
            if len(xs) == 1:
                return xs
            return ops.allreduce.sum(xs, signal_buffers)

        scales: list[TensorValue | None] = [*query_scales] or [None] * len(hs)
        normed = forward_sharded_layers(self._input_norm, hs)
        attended = [
            attention(layer_idx, x, kv, freqs, rows, scale)
            for attention, x, kv, freqs, rows, scale in zip(
                self._attention,
                normed,
                kv_collections,
                freqs_cis,
                input_row_offsets,
                scales,
                strict=True,
            )
        ]
        hs = [h + x for h, x in zip(hs, all_reduce(attended), strict=True)]
        normed = forward_sharded_layers(self._post_norm, hs)
        fed = forward_sharded_layers(self._mlp, normed)
        return [h + x for h, x in zip(hs, all_reduce(fed), strict=True)]
