"""A block's MLP: SwiGLU, ``down(silu(gate(x)) * up(x))``; HF ``MistralMLP``."""

from __future__ import annotations

from max.nn.linear import MLP

from ..graph_config import GraphConfig
from .packed import PackedMLP


def make_mlp(config: GraphConfig, layer: int) -> MLP | PackedMLP:
    """Returns a block's MLP.

    Args:
        config: The model's, finalized.
        layer: Which block.
    """
    hidden, wide = config.hidden_size, config.feed_forward_length
    if encodings := config.layer_encodings(layer):
        return PackedMLP(hidden, wide, encodings, config.kernel_mode)
    return config.linears("mlp", layer).mlp(hidden, wide, config.devices)
