"""RMSNorm of one row (https://arxiv.org/abs/1910.07467)."""

from std.math import fma, sqrt

from .layout import ROWS, Floats


def normalize(
    x: MutPointer[Float32, _],
    weight: ImmPointer[Float32, _],
    columns: Int,
    epsilon: Float32,
):
    """Replaces `x` with `x * weight / sqrt(mean(x * x) + epsilon)`."""
    var squares = Floats(0)
    var k = 0
    while k + ROWS <= columns:
        var v = x.unsafe_load[width=ROWS](k)
        squares = fma(v, v, squares)
        k += ROWS
    var sum = squares.reduce_add()
    while k < columns:
        sum += x.unsafe_load(k) * x.unsafe_load(k)
        k += 1
    var inverse = 1.0 / sqrt(sum / Float32(columns) + epsilon)
    k = 0
    while k + ROWS <= columns:
        x.unsafe_store(
            k,
            x.unsafe_load[width=ROWS](k)
            * inverse
            * weight.unsafe_load[width=ROWS](k),
        )
        k += ROWS
    while k < columns:
        x.unsafe_store(
            k, x.unsafe_load(k) * inverse * weight.unsafe_load(k)
        )
        k += 1
