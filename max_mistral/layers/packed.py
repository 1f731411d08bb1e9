"""Layers on packed weights, for one CPU: the bytes of the checkpoint, any encoding.

Decoding streams every weight once a token, so bytes are time. Each layer's
weight has the encoding that its tensor has in the checkpoint, but that bfloat16 may be
in 12 bits; activations and
sums are float32, except where the kernel mode says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, TensorValue, Weight, ops
from max.nn.layer import Module
from max.nn.norm import RMSNorm

from ..formats.qkv import QKVProjections
from ..kernels import KernelMode
from ..kernels.packing import Encoding, packed_shape
from .packed_ops import (
    CPU,
    Activations,
    Normed,
    embed,
    multiply,
    rounds,
    takes_amx,
)


def packed_weight(encoding: Encoding, rows: int, columns: int) -> Weight:
    """Returns a weight of ``[rows, columns]`` as ``packing.pack`` lays it out."""
    shape = packed_shape(encoding, rows, columns)
    return Weight("weight", DType.uint8, list(shape), CPU)


class PackedNorm(RMSNorm):
    """An RMSNorm that the next op computes."""

    def __call__(self, x: TensorValue) -> Normed:  # type: ignore[override]
        """Takes float32 ``[tokens, hidden_size]``."""
        return Normed(x, self.weight, self.eps)


class PackedLinear(Module):
    """A linear layer without bias.

    Args:
        in_dim: Columns of the weight.
        out_dim: Rows of the weight.
        encoding: How the weight is encoded.
        mode: Which kernels run.
        weight: A weight to share; by default one of its own.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        encoding: Encoding,
        mode: KernelMode = "on",
        weight: Weight | None = None,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.encoding = encoding
        self.mode = mode
        if weight is None:
            self.weight = packed_weight(encoding, out_dim, in_dim)
        else:
            self.set_shared_weight("weight", weight)

    @property
    def rounded(self) -> bool:
        """Whether the kernel rounds activations, if this CPU is faster for it."""
        return rounds(self.encoding, self.mode)

    @property
    def amx(self) -> bool:
        """Whether AMX multiplies them."""
        return self.rounded and takes_amx(self.encoding, self.in_dim)

    def __call__(self, x: Activations) -> TensorValue:
        """Maps float32 ``[tokens, in_dim]`` to float32 ``[tokens, out_dim]``."""
        return linear(x, [self])


def linear(x: Activations, layers: Sequence[PackedLinear]) -> TensorValue:
    """Returns what linear layers make of the same activations, side by side.

    One operation, which reads the activations once and keeps the threads at
    work from one weight to the next.

    Args:
        x: float32 ``[tokens, in_dim]``.
        layers: Of this ``in_dim`` and of one kernel mode.

    Returns:
        float32 ``[tokens, sum(out_dims)]``.
    """
    (mode,) = {layer.mode for layer in layers}
    if not are_alike(layers):
        return ops.concat([layer(x) for layer in layers], axis=-1)
    return multiply(
        x,
        [layer.weight for layer in layers],
        [layer.encoding for layer in layers],
        [layer.out_dim for layer in layers],
        portable=mode == "portable",
        rounded=layers[0].rounded,
        amx=layers[0].amx,
    )


def are_alike(layers: Sequence[PackedLinear]) -> bool:
    """Whether an operation can multiply the same rows by the weights of layers."""
    return len({(layer.encoding.is_dense, layer.rounded) for layer in layers}) == 1


class PackedQKV(QKVProjections):
    """The three projections of attention, in one operation."""

    def __call__(self, x: Activations) -> TensorValue:
        """Maps ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        return linear(x, self.projections)


class PackedMLP(Module):
    """SwiGLU, ``down(silu(gate(x)) * up(x))``; HF ``MistralMLP``.

    Args:
        hidden_size: The width of its input and output.
        feed_forward_length: The width in between.
        encodings: By the names ``gate_proj``, ``up_proj`` and ``down_proj``.
        mode: Which kernels run.
    """

    def __init__(
        self,
        hidden_size: int,
        feed_forward_length: int,
        encodings: Mapping[str, Encoding],
        mode: KernelMode = "on",
    ) -> None:
        super().__init__()
        wide = (hidden_size, feed_forward_length)
        self.gate_proj = PackedLinear(*wide, encodings["gate_proj"], mode)
        self.up_proj = PackedLinear(*wide, encodings["up_proj"], mode)
        self.down_proj = PackedLinear(*wide[::-1], encodings["down_proj"], mode)

    def __call__(self, x: Activations) -> TensorValue:
        """Maps ``[tokens, hidden_size]`` to the same."""
        width = self.gate_proj.out_dim
        both = linear(x, [self.gate_proj, self.up_proj])
        return self.down_proj(ops.silu(both[:, :width]) * both[:, width:])


class PackedEmbedding(Module):
    """An embedding whose table may be the head's weight too.

    Args:
        vocab_size: Rows of the table.
        hidden_size: Columns of the table.
        encoding: How the table is encoded.
    """

    def __init__(self, vocab_size: int, hidden_size: int, encoding: Encoding) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.encoding = encoding
        self.weight = packed_weight(encoding, vocab_size, hidden_size)

    def __call__(
        self, tokens: TensorValue, signal_buffers: Sequence[BufferValue]
    ) -> list[TensorValue]:
        """Maps int64 ``[tokens]`` to float32 ``[tokens, hidden_size]``."""
        rows = ops.constant(np.array([self.vocab_size], np.int64), device=CPU)
        return [embed(tokens, self.weight, self.encoding, rows, self.hidden_size)]


class PackedHead(PackedLinear):
    """The head: :class:`PackedLinear` on a list of one device's hidden states."""

    def __call__(  # type: ignore[override]
        self, xs: Sequence[TensorValue], signal_buffers: Sequence[BufferValue]
    ) -> list[TensorValue]:
        """Maps ``[tokens, hidden_size]`` to logits, ``[tokens, vocab_size]``."""
        return [super().__call__(xs[0])]
