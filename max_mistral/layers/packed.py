"""Layers on packed weights, for one CPU: the bytes of the checkpoint, any encoding.

Decoding streams every weight once a token, so bytes are time. Each layer's
weight has the encoding that its tensor has in the checkpoint; activations and
sums are float32, except where the kernel mode says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from max.dtype import DType
from max.graph import (
    BufferValue,
    DeviceRef,
    DimLike,
    TensorType,
    TensorValue,
    Weight,
    ops,
)
from max.nn.layer import Module
from max.nn.norm import RMSNorm

from .. import kernels
from ..formats.qkv import QKVProjections
from ..kernels import KernelMode
from ..kernels.packing import Encoding, packed_shape

CPU = DeviceRef.CPU()
# `STEP` in `amx_dense.mojo`.
AMX_COLUMNS = 32


def packed_weight(encoding: Encoding, rows: int, columns: int) -> Weight:
    """Returns a weight of ``[rows, columns]`` as ``packing.pack`` lays it out."""
    shape = packed_shape(encoding, rows, columns)
    return Weight("weight", DType.uint8, list(shape), CPU)


@dataclass(frozen=True)
class Normed:
    """Activations whose RMSNorm the next linear op will apply."""

    x: TensorValue
    """float32 ``[tokens, hidden_size]``."""
    weight: TensorValue
    """float32 ``[hidden_size]``."""
    epsilon: float


class PackedNorm(RMSNorm):
    """An RMSNorm that the next linear op computes."""

    def __call__(self, x: TensorValue) -> Normed:  # type: ignore[override]
        """Takes float32 ``[tokens, hidden_size]``."""
        return Normed(x, self.weight, self.eps)


Activations = TensorValue | Normed


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
    encodings = [layer.encoding for layer in layers]
    rounded = rounds(encodings[0], mode)
    if len({(e.is_dense, rounds(e, mode)) for e in encodings}) > 1:
        return ops.concat([layer(x) for layer in layers], axis=-1)
    return multiply(
        x,
        [layer.weight for layer in layers],
        encodings,
        [layer.out_dim for layer in layers],
        portable=mode == "portable",
        rounded=rounded,
        amx=rounded and takes_amx(encodings[0], layers[0].in_dim),
    )


def takes_amx(encoding: Encoding, in_dim: int) -> bool:
    """Whether AMX multiplies rounded activations by a weight."""
    wide = in_dim % AMX_COLUMNS == 0
    return encoding == Encoding.BF16 and wide and kernels.has_amx()


def rounds(encoding: Encoding, mode: KernelMode) -> bool:
    """Whether the activations beside a weight may be rounded.

    Beside bfloat16 weights to bfloat16, beside quantized ones to int8.
    """
    if encoding.is_dense:
        return encoding == Encoding.BF16 and rounds_to_bfloat16(mode)
    return mode == "on"


def rounds_to_bfloat16(mode: KernelMode) -> bool:
    """Whether what meets bfloat16 numbers is rounded to bfloat16, to be faster."""
    return mode == "on" and kernels.has_bfloat16()


def multiply(
    x: Activations,
    weights: Sequence[TensorValue],
    encodings: Sequence[Encoding],
    out_dims: Sequence[int],
    *,
    portable: bool = False,
    rounded: bool = False,
    amx: bool = False,
) -> TensorValue:
    """Returns ``x @ weight.T`` of each packed weight, side by side.

    Args:
        x: float32 ``[tokens, in_dim]``.
        weights: uint8, as ``packing.pack`` lays them out.
        encodings: Theirs; all dense or none.
        out_dims: Their rows.
        portable: Whether to do without AVX-512.
        rounded: Whether to round ``x``: to bfloat16 beside bfloat16 weights, which
            all are then; to int8 beside quantized ones, where the CPU has
            dot products of int8.
        amx: Whether AMX multiplies them, which then :func:`takes_amx`.

    Returns:
        float32 ``[tokens, sum(out_dims)]``.
    """
    rows = ops.constant(np.array(out_dims, np.int64), device=CPU)
    return multiply_any(
        x,
        weights,
        encodings,
        rows,
        sum(out_dims),
        portable=portable,
        rounded=rounded,
        amx=amx,
    )


def multiply_any(
    x: Activations,
    weights: Sequence[TensorValue],
    encodings: Sequence[Encoding],
    rows: TensorValue,
    out_dim: DimLike,
    *,
    portable: bool = False,
    rounded: bool = False,
    amx: bool = False,
) -> TensorValue:
    """Does what :func:`multiply` does, with weights of any number of rows.

    ``rows`` has each weight's, int64 ``[weights]``, and ``out_dim`` is their sum.
    """
    kinds = sum(int(encoding) << 8 * i for i, encoding in enumerate(encodings))
    normed = isinstance(x, Normed)
    if isinstance(x, Normed):
        norm, epsilon, x = x.weight, x.epsilon, x.x
    else:
        norm, epsilon = ops.constant(np.zeros(1, np.float32), device=CPU), 0.0
    return ops.custom(
        "mistral_linear",
        CPU,
        [
            x,
            norm,
            ops.constant(epsilon, DType.float32, device=CPU),
            rows,
            *weights,
        ],
        [TensorType(DType.float32, [x.shape[0], out_dim], CPU)],
        parameters={
            "kinds": kinds,
            "portable": portable,
            "rounded": rounded,
            "amx": amx,
            "normed": normed,
        },
    )[0].tensor


def embed(
    tokens: TensorValue,
    weight: TensorValue,
    encoding: Encoding,
    rows: TensorValue,
    hidden_size: DimLike,
) -> TensorValue:
    """Returns rows of a packed weight.

    Args:
        tokens: int64 ``[tokens]``, which rows.
        weight: uint8, as ``packing.pack`` lays it out.
        encoding: Its.
        rows: How many rows it has, int64 ``[1]``; others raise.
        hidden_size: Its columns.

    Returns:
        float32 ``[tokens, hidden_size]``.
    """
    return ops.custom(
        "mistral_embedding",
        CPU,
        [tokens, rows, weight],
        [TensorType(DType.float32, [tokens.shape[0], hidden_size], CPU)],
        parameters={"kind": int(encoding)},
    )[0].tensor


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
