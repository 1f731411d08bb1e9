"""Products with floating-point weights: float32, bfloat16, float16.

Activations and sums are float32. The order of a row's sum does not depend on
how many rows there are, so a request computes the same in any batch.
"""

from std.math import fma
from std.memory import bitcast

from .layout import BF16, F32, ROWS


@inline(.always)
def pack_rows[
    MR: Int
](dst: MutPointer[UInt8, _], x: ImmPointer[Float32, _], columns: Int):
    """Interleaves `MR` rows of activations: `[columns][MR]` float32."""
    var d = dst.unsafe_bitcast[Float32]()
    for k in range(columns):
        comptime for m in range(MR):
            d.unsafe_store(k * MR + m, x.unsafe_load(m * columns + k))


def packed_row_bytes(columns: Int) -> Int:
    """Bytes of a packed row of activations."""
    return columns * 4


@inline(.always)
def dense_tile[
    kind: Int, MR: Int, NR: Int
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
) -> Array[SIMD[.float32, ROWS], MR * NR]:
    """Multiplies `MR` packed rows of activations by `NR` panels.

    Args:
        xp: The rows, from `pack_rows`.
        w: The first panel.
        columns: Columns of the weight.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    var acc = Array[SIMD[.float32, ROWS], MR * NR](fill=0)
    var xf = xp.unsafe_bitcast[Float32]()
    comptime if kind == BF16:
        for pair in range(columns // 2):
            var even = Array[SIMD[.float32, ROWS], NR](fill=0)
            var odd = Array[SIMD[.float32, ROWS], NR](fill=0)
            comptime for r in range(NR):
                # A bfloat16 is the upper half of a float32.
                var raw = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[UInt32]()
                    .unsafe_load[width=ROWS](pair * ROWS)
                )
                even[r] = bitcast[.float32, ROWS](raw << 16)
                odd[r] = bitcast[.float32, ROWS](raw & 0xFFFF0000)
            comptime for m in range(MR):
                var x0 = SIMD[.float32, ROWS](xf.unsafe_load(2 * pair * MR + m))
                var x1 = SIMD[.float32, ROWS](
                    xf.unsafe_load((2 * pair + 1) * MR + m)
                )
                comptime for r in range(NR):
                    acc[m * NR + r] = fma(even[r], x0, acc[m * NR + r])
                    acc[m * NR + r] = fma(odd[r], x1, acc[m * NR + r])
        if columns % 2 == 1:
            var last = columns - 1
            comptime for r in range(NR):
                var raw = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[UInt32]()
                    .unsafe_load[width=ROWS](last // 2 * ROWS)
                )
                var even = bitcast[.float32, ROWS](raw << 16)
                comptime for m in range(MR):
                    var x0 = SIMD[.float32, ROWS](xf.unsafe_load(last * MR + m))
                    acc[m * NR + r] = fma(even, x0, acc[m * NR + r])
    else:
        comptime dtype = DType.float32 if kind == F32 else DType.float16
        for k in range(columns):
            var wv = Array[SIMD[.float32, ROWS], NR](fill=0)
            comptime for r in range(NR):
                wv[r] = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[Scalar[dtype]]()
                    .unsafe_load[width=ROWS](k * ROWS)
                    .cast[.float32]()
                )
            comptime for m in range(MR):
                var xv = SIMD[.float32, ROWS](xf.unsafe_load(k * MR + m))
                comptime for r in range(NR):
                    acc[m * NR + r] = fma(wv[r], xv, acc[m * NR + r])
    return acc^


def dense_weight[
    kind: Int
](panel: ImmPointer[UInt8, _], row: Int, column: Int) -> Float32:
    """Returns one weight of a panel."""
    comptime if kind == BF16:
        return (
            panel.unsafe_bitcast[BFloat16]()
            .unsafe_load(column // 2 * 32 + row * 2 + column % 2)
            .cast[.float32]()
        )
    else:
        comptime dtype = DType.float32 if kind == F32 else DType.float16
        return (
            panel.unsafe_bitcast[Scalar[dtype]]()
            .unsafe_load(column * ROWS + row)
            .cast[.float32]()
        )
