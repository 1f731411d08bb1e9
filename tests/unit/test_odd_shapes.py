"""The CPU kernels of linear layers and embeddings, in shapes around their tiles."""

import numpy as np
import pytest

from max_mistral.kernels.packing import Encoding, pack
from tests.unit.kernel_graph import IN_12_BITS, WIDTHS, run
from tests.unit.test_kernels import (
    activations,
    quantization,
    random_weight,
    rounding,
)

# Tokens, rows, and columns by blocks of 1, 8, 32 and 256. A panel has 16 rows, a tile
# of tokens 16 at most, a vector 16 numbers.
SHAPES = [
    (1, 1, {1: 1, 8: 8, 32: 32, 256: 256}),
    (7, 15, {1: 2, 8: 16, 32: 64, 256: 512}),
    (8, 16, {1: 15, 8: 24, 32: 96, 256: 768}),
    (10, 17, {1: 17, 8: 8, 32: 32, 256: 256}),
    (17, 33, {1: 33, 8: 264, 32: 160, 256: 256}),
    (0, 31, {1: 3, 8: 8, 32: 32, 256: 256}),
    # More than `DEPTH`, `GROUP` and `TOKENS` of `amx_dense.mojo`.
    (49, 300, {1: 1, 8: 520, 32: 32, 256: 1280}),
    (1057, 20, {1: 1, 8: 16, 32: 32, 256: 768}),
    # More panels than a tile of one row has, of more than `LONG_PANEL`.
    (1, 100, {1: 1, 8: 8, 32: 4096, 256: 8192}),
]


@pytest.mark.parametrize(("tokens", "rows", "widths"), SHAPES)
def test_a_shape(tokens, rows, widths):
    xs = {w: activations(tokens, widths[w]) for w in WIDTHS}
    columns = {e: widths[e.block_columns] for e in Encoding}
    weights = {e: random_weight(e, rows, columns[e]) for e in Encoding}
    packed = {e: pack(data, e, columns[e]) for e, (data, _) in weights.items()}
    ids = np.arange(rows)[::-1].copy()
    ones, norm = np.ones(rows, np.float32), np.ones(widths[1], np.float32)
    wide, values = random_weight(Encoding.BF16, rows, widths[256])
    wide = pack(wide, Encoding.BF16, widths[256])
    in_16 = pack(weights[Encoding.BF16_IN_12_BITS][0], Encoding.BF16, widths[8])
    found = run(xs, ids, ones, norm, packed, wide, in_16)
    for how in IN_12_BITS:
        assert np.array_equal(found[how, 12], found[how, 16])
    x = xs[256].astype(np.float64)
    # As in `test_activations_rounded_to_bfloat16`.
    bound = rounding(Encoding.BF16, values, x) + 2.0**-8 * (np.abs(x) @ abs(values).T)
    assert (np.abs(found["amx"] - x @ values.T) <= bound).all()
    for encoding, (_, weight) in weights.items():
        x = xs[encoding.block_columns].astype(np.float64)
        fast, portable = found[encoding]["fast"], found[encoding]["portable"]
        embedding = found[encoding]["embedding"]
        bound = rounding(encoding, weight, x)
        rounded = 0 if encoding.is_dense else quantization(weight, x)
        assert fast.shape == portable.shape == (tokens, rows)
        assert (np.abs(portable - x @ weight.T) <= bound).all(), encoding
        assert (np.abs(fast - x @ weight.T) <= bound + rounded).all(), encoding
        # A row is made as a product with a token that is 1 at one place.
        near = rounding(encoding, weight, np.eye(columns[encoding])).T
        assert (np.abs(embedding[::-1] - weight) <= near).all(), encoding
