"""RMSNorm of one row (https://arxiv.org/abs/1910.07467)."""

from std.math import fma, sqrt

from .layout import ROWS, Floats


def normalize(
    x: MutPointer[Float32, _],
    weight: ImmPointer[Float32, _],
    columns: Int,
    epsilon: Float32,
    begin: Int,
    end: Int,
):
    """Replaces columns of `x` with `x * weight / sqrt(mean(x * x) + epsilon)`.

    Args:
        x: The whole row, `[columns]`.
        weight: RMSNorm's.
        columns: How many there are.
        epsilon: RMSNorm's.
        begin: The first column that is replaced, a multiple of 16.
        end: The column after the last.
    """
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
    k = begin
    while k + ROWS <= end:
        x.unsafe_store(
            k,
            x.unsafe_load[width=ROWS](k)
            * inverse
            * weight.unsafe_load[width=ROWS](k),
        )
        k += ROWS
    while k < end:
        x.unsafe_store(
            k, x.unsafe_load(k) * inverse * weight.unsafe_load(k)
        )
        k += 1
