"""What attention takes of a step."""

from __future__ import annotations

from dataclasses import dataclass

from max.graph import TensorValue
from max.nn.kv_cache import PagedCacheValues


@dataclass(frozen=True)
class AttentionStep:
    """What a block's attention takes of a step beside activations, on one device."""

    layer_idx: TensorValue
    """uint32 scalar, the layer's place in the KV cache."""
    kv_collection: PagedCacheValues
    """The paged KV cache; this step's keys and values are written to it."""
    freqs_cis: TensorValue
    """Rotary cosines and sines, ``[positions, head_dim]``, of activations' dtype."""
    input_row_offsets: TensorValue
    """uint32 ``[batch + 1]``."""
    query_scale: TensorValue | None
    """float32 ``[total_seq_len]`` from :func:`.query_scale.query_scale`, what queries
    are multiplied by, or ``None``."""
