"""The operations of :mod:`..kernels` on packed weights, in a graph for one CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, DimLike, TensorType, TensorValue, ops

from .. import kernels
from ..kernels import KernelMode
from ..kernels.packing import Encoding

CPU = DeviceRef.CPU()
# `STEP` in `amx_dense.mojo`.
AMX_COLUMNS = 32


@dataclass(frozen=True)
class Normed:
    """Activations whose RMSNorm the next linear op will apply."""

    x: TensorValue
    """float32 ``[tokens, hidden_size]``."""
    weight: TensorValue
    """float32 ``[hidden_size]``."""
    epsilon: float


Activations = TensorValue | Normed


def takes_amx(encoding: Encoding, in_dim: int) -> bool:
    """Whether AMX multiplies rounded activations by a weight."""
    wide = in_dim % AMX_COLUMNS == 0
    return encoding == Encoding.BF16 and wide and kernels.has_amx()


def rounds(encoding: Encoding, mode: KernelMode) -> bool:
    """Whether the activations beside a weight may be rounded.

    Beside bfloat16 weights to bfloat16, beside quantized ones to int8.
    """
    if encoding.is_dense:
        return encoding.is_bfloat16 and rounds_to_bfloat16(mode)
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
            "kinds": kinds_of(encodings),
            "portable": portable,
            "rounded": rounded,
            "amx": amx,
            "normed": normed,
        },
    )[0].tensor


def kinds_of(encodings: Sequence[Encoding]) -> int:
    """Returns encodings as a kernel takes them, a byte each, the first lowest."""
    return sum(int(encoding) << 8 * i for i, encoding in enumerate(encodings))


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
