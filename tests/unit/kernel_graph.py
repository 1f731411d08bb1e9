"""Every kernel of linear layers and embeddings in one graph, for weights of any size.

One, since each graph takes half a minute to compile beside what is in it.
"""

from functools import cache

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops

from max_mistral import kernels
from max_mistral.kernels.packing import Encoding
from max_mistral.layers.packed_ops import Normed, embed, multiply_any
from max_mistral.workarounds.graph_cache import find_at_once

HOST = DeviceRef.CPU()
# Columns are a multiple of one of these.
WIDTHS = sorted({encoding.block_columns for encoding in Encoding})
DENSE = [encoding for encoding in Encoding if encoding.block_columns == 1]
# Kinds of weights in one operation, one of them twice.
MIXED = [Encoding.Q4_K, Encoding.Q6_K, Encoding.Q4_K]
EPSILON = 0.25
# How a linear layer runs, by the encoding of its weight.
HOWS = {
    "fast": lambda encoding: {"rounded": not encoding.is_dense},
    "exact": lambda encoding: {},
    "portable": lambda encoding: {"portable": True},
}
# Outputs beside those of each encoding.
ROUNDED = ["rounded", "rounded, portable", "amx"]
# How weights in 12 bits run: after the same ones in 16, before both together.
IN_12_BITS = {
    "exact": {},
    "rounded": {"rounded": True},
    "rounded, portable": {"rounded": True, "portable": True},
}
BOTH = [(how, bits) for how in IN_12_BITS for bits in (16, 12, "together")]
NAMED = ["dense", "mixed", "fused", *ROUNDED, *BOTH, "normed"]


@cache
def compiled():
    """Returns the graph, ready to run.

    Its inputs: activations for each of ``WIDTHS``, ids of rows, a number for each row
    of the weights, how many these are, an RMSNorm's weight, and packed weights.
    """
    types = [TensorType(DType.float32, ["tokens", f"in_{w}"], HOST) for w in WIDTHS]
    types += [
        TensorType(DType.int64, ["ids"], HOST),
        TensorType(DType.float32, ["rows"], HOST),
        TensorType(DType.int64, [1], HOST),
        TensorType(DType.float32, [f"in_{WIDTHS[0]}"], HOST),
    ]
    types += [
        TensorType(DType.uint8, ["panels", f"panel_{name}"], HOST)
        for name in [*Encoding.__members__, "wide", "in_16"]
    ]
    with Graph(
        "kernels", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        values = [value.tensor for value in graph.inputs]
        xs = dict(zip(WIDTHS, values, strict=False))
        ids, more, rows, norm, *packed, wide, in_16 = values[len(WIDTHS) :]

        def linear(x, encodings, weights=None, **how):
            count = len(encodings)
            return multiply_any(
                x,
                weights or [packed[int(encoding)] for encoding in encodings],
                encodings,
                ops.concat([rows] * count),
                count * more.shape[0],
                **how,
            )

        outputs = []
        for encoding, weight in zip(Encoding, packed, strict=True):
            x = xs[encoding.block_columns]
            outputs += [linear(x, [encoding], **how(encoding)) for how in HOWS.values()]
            outputs.append(embed(ids, weight, encoding, rows, x.shape[1]))
        dense = xs[Encoding.BF16.block_columns]
        quantized = xs[Encoding.Q4_K.block_columns]
        outputs.append(linear(dense, DENSE))
        outputs.append(linear(quantized, MIXED, rounded=True))
        # What comes before and after is part of the operation.
        halved = linear(quantized * 0.5, [Encoding.Q4_K], rounded=True)
        outputs.append(halved + more)
        for portable in (False, True):
            bfloat16 = [Encoding.BF16]
            outputs.append(linear(dense, bfloat16, portable=portable, rounded=True))
        amx = kernels.has_amx()
        outputs.append(linear(quantized, bfloat16, [wide], rounded=True, amx=amx))
        for how in IN_12_BITS.values():
            kinds = [Encoding.BF16, Encoding.BF16_IN_12_BITS]
            both = [in_16, packed[int(kinds[1])]]
            x = xs[kinds[1].block_columns]
            outputs.append(linear(x, kinds[:1], both[:1], **how))
            outputs.append(linear(x, kinds[1:], both[1:], **how))
            outputs.append(linear(x, kinds[1:] + kinds, both[1:] + both, **how))
        normed = Normed(dense, norm, EPSILON)
        outputs.append(linear(normed, [Encoding.F32]))
        graph.output(*outputs)
    session = InferenceSession(devices=[CPU()])
    find_at_once(session)
    return session.load(graph)


def run(xs, ids, more, norm, weights, wide, in_16):
    """Runs it.

    Args:
        xs: float32 ``[tokens, columns]`` by ``WIDTHS``.
        ids: int64, of rows.
        more: float32 ``[rows]``, added to what is called ``fused``.
        norm: float32 ``[columns]``, of the first of ``xs``.
        weights: Packed ones by their encoding, ``rows`` rows each.
        wide: A bfloat16 weight of as many columns as the quantized ones, for AMX.
        in_16: A bfloat16 weight, the same as the one in 12 bits.

    Returns:
        encoding -> how -> output, and outputs by name.
    """
    arrays = [*(xs[width] for width in WIDTHS), ids, more, np.array([len(more)]), norm]
    arrays += [*(weights[encoding] for encoding in Encoding), wide, in_16]
    found = compiled().execute(*map(Buffer.from_numpy, arrays))
    rest = iter([output.to_numpy() for output in found])
    each = {e: {how: next(rest) for how in [*HOWS, "embedding"]} for e in Encoding}
    return each | dict(zip(NAMED, rest, strict=True))
