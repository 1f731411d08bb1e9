"""A block's attention: project, rotate, scale, attend, output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self

from max.graph import DeviceRef, ShardingStrategy, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_ragged, rope_split_store_ragged
from max.nn.kv_cache import KVCacheParams
from max.nn.layer import Module

from ..graph_config import GraphConfig
from .attention_step import AttentionStep
from .packed import PackedLinear, PackedQKV
from .packed_attention import packed_attention
from .packed_ops import Activations


class MistralAttention(Module):
    """Causal attention over the paged KV cache; HF ``MistralAttention``.

    The block calls :attr:`o_proj` itself.

    Args:
        qkv_proj: Maps activations to ``[tokens, (heads + 2 * kv_heads) * head_dim]``.
        o_proj: Maps ``[tokens, heads * head_dim]`` to ``[tokens, hidden_size]``.
        kv_params: The KV cache that its keys and values are in.
        num_heads: Heads of queries, on this device.
        head_dim: Width of one.
        scale: What ``queries @ keys`` is multiplied by.
        window: How many keys a token sees, itself included; ``None`` for all.
    """

    def __init__(
        self,
        qkv_proj: Any,
        o_proj: Any,
        *,
        kv_params: KVCacheParams,
        num_heads: int,
        head_dim: int,
        scale: float,
        window: int | None,
    ) -> None:
        super().__init__()
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self.kv_params = kv_params
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = scale
        self.window = window
        self._sharding_strategy: ShardingStrategy | None = None

    @classmethod
    def of(cls, config: GraphConfig, layer: int) -> Self:
        """Returns the attention of a block.

        Args:
            config: The model's, finalized.
            layer: Which block.
        """
        hidden, device = config.hidden_size, config.devices[0]
        queries = config.num_attention_heads * config.head_dim
        keys = config.sharing.total_kv_heads * config.head_dim
        out_dims = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        qkv_proj: Any
        o_proj: Any
        if encodings := config.layer_encodings(layer):
            linears = {
                name: PackedLinear(hidden, out_dim, encodings[name], config.kernel_mode)
                for name, out_dim in out_dims.items()
            }
            qkv_proj = PackedQKV(linears)
            o_proj = PackedLinear(
                queries, hidden, encodings["o_proj"], config.kernel_mode
            )
        else:
            made_of = config.linears("self_attn", layer)
            qkv_proj = made_of.qkv(hidden, out_dims, device)
            o_proj = made_of.linear(queries, hidden, device)
        return cls(
            qkv_proj,
            o_proj,
            kv_params=config.kv_groups[config.kv_places[layer][0]],
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            scale=config.attention_multiplier,
            window=config.layer_windows[layer],
        )

    def __call__(self, x: Activations, step: AttentionStep) -> TensorValue:
        """Attends with all heads; writes keys and values to the cache.

        Args:
            x: ``[total_seq_len, hidden_size]``.
            step: The rest.

        Returns:
            What :attr:`o_proj` takes, ``[total_seq_len, heads * head_dim]``.
        """
        qkv = self.qkv_proj(x)
        attend: Callable[..., TensorValue] = max_attention
        if isinstance(self.o_proj, PackedLinear):
            attend = partial(packed_attention, mode=self.o_proj.mode)
        attended = attend(
            qkv,
            step,
            kv_params=self.kv_params,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            scale=self.scale,
            window=self.window,
        )
        # [total_seq_len, heads, head_dim] -> [total_seq_len, heads * head_dim]
        return attended.reshape((qkv.shape[0], self.num_heads * self.head_dim))

    @property
    def sharding_strategy(self) -> ShardingStrategy | None:
        """How the heads are shared among devices."""
        return self._sharding_strategy

    @sharding_strategy.setter
    def sharding_strategy(self, strategy: ShardingStrategy) -> None:
        devices = strategy.num_devices
        self._sharding_strategy = strategy
        self.qkv_proj.sharding_strategy = ShardingStrategy.rowwise(devices)
        self.o_proj.sharding_strategy = ShardingStrategy.head_aware_columnwise(
            devices, self.num_heads, self.head_dim
        )

    def shard(self, devices: Iterable[DeviceRef]) -> list[MistralAttention]:
        """Returns one shard per device, each with as many heads."""
        devices = list(devices)
        parts = zip(
            self.qkv_proj.shard(devices), self.o_proj.shard(devices), strict=True
        )
        return [
            MistralAttention(
                qkv_proj,
                o_proj,
                kv_params=self.kv_params,
                num_heads=self.num_heads // len(devices),
                head_dim=self.head_dim,
                scale=self.scale,
                window=self.window,
            )
            for qkv_proj, o_proj in parts
        ]


def max_attention(
    qkv: TensorValue,
    step: AttentionStep,
    *,
    kv_params: KVCacheParams,
    num_heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
) -> TensorValue:
    """Returns what MAX's own kernels attend to, ``[tokens, heads, head_dim]``.

    See :func:`.packed_attention` for the arguments.
    """
    queries = rope_split_store_ragged(
        kv_params=kv_params,
        qkv=qkv,
        input_row_offsets=step.input_row_offsets,
        freqs_cis=step.freqs_cis,
        kv_collection=step.kv_collection,
        layer_idx=step.layer_idx,
        n_heads=num_heads,
        # HF checkpoints pair dimension i with i + head_dim / 2.
        interleaved=False,
    )
    # [tokens, heads * head_dim] -> [tokens, heads, head_dim]
    queries = queries.reshape((-1, num_heads, head_dim))
    if step.query_scale is not None:
        factor = ops.cast(step.query_scale, queries.dtype)
        # [tokens] -> [tokens, 1, 1]
        queries *= ops.unsqueeze(ops.unsqueeze(factor, -1), -1)
    # The mask variant and the window only act together: one without the other
    # is silently causal.
    windowed = MHAMaskVariant.SLIDING_WINDOW_CAUSAL_MASK
    return flash_attention_ragged(
        kv_params,
        # The kernel wants queries of the cache's dtype.
        input=ops.cast(queries, kv_params.dtype),
        kv_collection=step.kv_collection,
        layer_idx=step.layer_idx,
        input_row_offsets=step.input_row_offsets,
        mask_variant=MHAMaskVariant.CAUSAL_MASK if window is None else windowed,
        scale=scale,
        local_window_size=-1 if window is None else window,
        output_dtype=queries.dtype,
    )
