"""The CPU kernels of linear layers and embeddings, in shapes around their tiles.

All in one graph, whose sizes are known only when it runs.
"""

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops

from max_mistral import kernels
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.layers.packed import embed
from tests.unit.test_kernels import (
    activations,
    quantization,
    random_weight,
    rounding,
)

WIDTHS = sorted({encoding.block_columns for encoding in Encoding})
# Tokens, rows, and columns by blocks of 1, 32 and 256. A panel has 16 rows, a tile
# of tokens 16 at most, a vector 16 numbers.
SHAPES = [
    (1, 1, {1: 1, 32: 32, 256: 256}),
    (7, 15, {1: 2, 32: 64, 256: 512}),
    (8, 16, {1: 15, 32: 96, 256: 768}),
    (9, 17, {1: 17, 32: 32, 256: 256}),
    (17, 33, {1: 33, 32: 160, 256: 256}),
    (0, 31, {1: 3, 32: 32, 256: 256}),
]


@pytest.fixture(scope="module")
def run():
    """Returns each encoding's linear layer, the portable one, and embedding."""
    cpu = DeviceRef.CPU()
    types = [TensorType(DType.float32, ["tokens", f"in_{w}"], cpu) for w in WIDTHS]
    types += [
        TensorType(DType.int64, ["ids"], cpu),
        TensorType(DType.int64, [1], cpu),
        # Says in the graph how many rows there are.
        TensorType(DType.uint8, ["rows"], cpu),
    ]
    for encoding in Encoding:
        shape = ["panels", f"panel_{encoding.name}"]
        types.append(TensorType(DType.uint8, shape, cpu))
    with Graph(
        "shapes", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        *xs, ids, rows, counted = (value.tensor for value in graph.inputs[:6])
        outputs = []
        for encoding, value in zip(Encoding, graph.inputs[6:], strict=True):
            x = xs[WIDTHS.index(encoding.block_columns)]
            none = ops.constant(np.zeros(1, np.float32), device=cpu)
            epsilon = ops.constant(0.0, DType.float32, device=cpu)
            for portable in (False, True):
                rounded = not (portable or encoding.is_dense)
                kind = {"kinds": int(encoding), "portable": portable}
                outputs += ops.custom(
                    "mistral_linear",
                    cpu,
                    [x, none, epsilon, rows, value],
                    [TensorType(x.dtype, [x.shape[0], counted.shape[0]], cpu)],
                    parameters=kind | {"rounded": rounded, "normed": False},
                )
            outputs.append(embed(ids, value.tensor, encoding, x.shape[1]))
        graph.output(*outputs)
    model = InferenceSession(devices=[CPU()]).load(graph)

    def run(xs, rows, weights):
        ids = np.arange(rows)[::-1].copy()
        found = model.execute(
            *(Buffer.from_numpy(x) for x in xs),
            Buffer.from_numpy(ids),
            Buffer.from_numpy(np.array([rows])),
            Buffer.from_numpy(np.zeros(rows, np.uint8)),
            *(Buffer.from_numpy(weight) for weight in weights),
        )
        arrays = [output.to_numpy() for output in found]
        return {e: arrays[3 * i : 3 * i + 3] for i, e in enumerate(Encoding)}

    return run


@pytest.mark.parametrize(("tokens", "rows", "widths"), SHAPES)
def test_a_shape(run, tokens, rows, widths):
    xs = {w: activations(tokens, widths[w]) for w in WIDTHS}
    columns = {e: widths[e.block_columns] for e in Encoding}
    weights = {e: random_weight(e, rows, columns[e]) for e in Encoding}
    packed = [pack(data, e, columns[e]) for e, (data, _) in weights.items()]
    found = run(xs.values(), rows, packed)
    for encoding, (_, weight) in weights.items():
        x = xs[encoding.block_columns].astype(np.float64)
        fast, portable, embedding = found[encoding]
        bound = rounding(encoding, weight, x)
        rounded = 0 if encoding.is_dense else quantization(weight, x)
        assert fast.shape == portable.shape == (tokens, rows)
        assert (np.abs(portable - x @ weight.T) <= bound).all(), encoding
        assert (np.abs(fast - x @ weight.T) <= bound + rounded).all(), encoding
        # A row is made as a product with a token that is 1 at one place.
        near = rounding(encoding, weight, np.eye(columns[encoding])).T
        assert (np.abs(embedding[::-1] - weight) <= near).all(), encoding
