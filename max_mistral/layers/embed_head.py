"""Embedding and head with one interface for one device and many.

``max.nn`` has one class for one device and another, which needs collectives
and so a GPU, for several. Here both take and return a list of tensors, one
per device.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.graph import BufferValue, TensorValue
from max.nn.embedding import Embedding, VocabParallelEmbedding
from max.nn.linear import ColumnParallelLinear, Linear

from ..graph_config import GraphConfig
from ..weights.names import EMBEDDING, HEAD
from .packed import PackedEmbedding, PackedHead


class _OneDeviceEmbedding(Embedding):
    def __call__(  # type: ignore[override]
        self, tokens: TensorValue, signal_buffers: Sequence[BufferValue]
    ) -> list[TensorValue]:
        return [super().__call__(tokens)]


class _OneDeviceHead(Linear):
    def __call__(  # type: ignore[override]
        self, xs: Sequence[TensorValue], signal_buffers: Sequence[BufferValue]
    ) -> list[TensorValue]:
        return [super().__call__(xs[0])]


AnyEmbedding = _OneDeviceEmbedding | VocabParallelEmbedding | PackedEmbedding


def make_embedding(
    config: GraphConfig,
) -> AnyEmbedding:
    """Returns the embedding: ``(tokens, signal_buffers) -> [hidden] per device``."""
    if config.encodings:
        return PackedEmbedding(
            config.vocab_size, config.hidden_size, config.encodings[EMBEDDING.graph]
        )
    if len(config.devices) == 1:
        return _OneDeviceEmbedding(
            config.vocab_size,
            config.hidden_size,
            config.dtype,
            config.devices[0],
        )
    return VocabParallelEmbedding(
        config.vocab_size, config.hidden_size, config.dtype, config.devices
    )


def make_head(
    config: GraphConfig,
    embedding: AnyEmbedding,
) -> _OneDeviceHead | ColumnParallelLinear | PackedHead:
    """Returns the head: ``(hidden per device, signal_buffers) -> logits per device``.

    With ``tie_word_embeddings`` it shares the embedding's weight.
    """
    tied = embedding.weight if config.tie_word_embeddings else None
    if config.encodings:
        return PackedHead(
            config.hidden_size,
            config.vocab_size,
            config.encodings[(HEAD if tied is None else EMBEDDING).graph],
            config.kernel_mode,
            tied,
        )
    if len(config.devices) > 1:
        return ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            config.dtype,
            devices=config.devices,
            tied_weight=tied,
        )
    head = _OneDeviceHead(
        config.hidden_size, config.vocab_size, config.dtype, config.devices[0]
    )
    if tied is not None:
        head.set_shared_weight("weight", tied)
    return head
