"""Products with floating-point weights: float32, bfloat16, float16.

Sums are float32, and activations too, except where those of bfloat16 weights
are `rounded` to bfloat16. The order of a row's sum does not depend on how many
rows there are, so a request computes the same in any batch.
"""

from std.math import fma
from std.memory import bitcast
from std.sys import llvm_intrinsic

from .layout import BF16, F32, ROWS, Floats


@inline(.always)
def pack_rows[
    rounded: Bool, MR: Int
](dst: MutPointer[UInt8, _], x: ImmPointer[Float32, _], columns: Int):
    """Interleaves `MR` rows of activations.

    `[columns][MR]` float32, or rounded `[ceil(columns / 2)][MR][2]` bfloat16.
    """
    comptime if rounded:
        var d = dst.unsafe_bitcast[UInt32]()
        comptime for m in range(MR):
            var row = x.unsafe_offset(m * columns)
            var k = 0
            while k + ROWS <= columns:
                var pairs = bitcast[.uint32, ROWS // 2](
                    row.unsafe_load[width=ROWS](k).cast[.bfloat16]()
                )
                comptime for i in range(ROWS // 2):
                    d.unsafe_store((k // 2 + i) * MR + m, pairs[i])
                k += ROWS
            while k < columns:
                var pair = SIMD[.float32, 2](row.unsafe_load(k), 0)
                if k + 1 < columns:
                    pair[1] = row.unsafe_load(k + 1)
                d.unsafe_store(
                    k // 2 * MR + m, bitcast[.uint32, 1](pair.cast[.bfloat16]())
                )
                k += 2
    else:
        var d = dst.unsafe_bitcast[Float32]()
        for k in range(columns):
            comptime for m in range(MR):
                d.unsafe_store(k * MR + m, x.unsafe_load(m * columns + k))


def packed_row_bytes[rounded: Bool](columns: Int) -> Int:
    """Bytes of a packed row of activations."""
    comptime if rounded:
        return (columns + 1) // 2 * 4
    else:
        return columns * 4


@inline(.always)
def _dot2[
    native: Bool
](acc: Floats, w: SIMD[.uint32, ROWS], x: SIMD[.uint32, ROWS]) -> Floats:
    """Adds two products a lane, of bfloat16 by bfloat16."""
    comptime if native:
        return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Floats](
            acc, bitcast[.bfloat16, 2 * ROWS](w), bitcast[.bfloat16, 2 * ROWS](x)
        )
    else:
        var first = fma(_even(w), _even(x), acc)
        return fma(_odd(w), _odd(x), first)


@inline(.always)
def _even(pairs: SIMD[.uint32, ROWS]) -> Floats:
    # A bfloat16 is the upper half of a float32.
    return bitcast[.float32, ROWS](pairs << 16)


@inline(.always)
def _odd(pairs: SIMD[.uint32, ROWS]) -> Floats:
    return bitcast[.float32, ROWS](pairs & 0xFFFF0000)


@inline(.always)
def rounded_tile[
    native: Bool, MR: Int, NR: Int
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
) -> Array[Floats, MR * NR]:
    """Multiplies as `dense_tile` does, by bfloat16 rows.

    With `native`, by the CPU's own instruction.
    """
    var acc = Array[Floats, MR * NR](fill=0)
    var xi = xp.unsafe_bitcast[UInt32]()
    for pair in range((columns + 1) // 2):
        var wv = Array[SIMD[.uint32, ROWS], NR](fill=0)
        comptime for r in range(NR):
            wv[r] = (
                w.unsafe_offset(r * panel)
                .unsafe_bitcast[UInt32]()
                .unsafe_load[width=ROWS](pair * ROWS)
            )
        comptime for m in range(MR):
            var xv = SIMD[.uint32, ROWS](xi.unsafe_load(pair * MR + m))
            comptime for r in range(NR):
                acc[m * NR + r] = _dot2[native](acc[m * NR + r], wv[r], xv)
    return acc^


@inline(.always)
def dense_tile[
    kind: Int, MR: Int, NR: Int
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
) -> Array[Floats, MR * NR]:
    """Multiplies `MR` packed rows of activations by `NR` panels.

    Args:
        xp: The rows, from `pack_rows`.
        w: The first panel.
        columns: Columns of the weight.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    var acc = Array[Floats, MR * NR](fill=0)
    var xf = xp.unsafe_bitcast[Float32]()
    comptime if kind == BF16:
        for pair in range(columns // 2):
            var even = Array[Floats, NR](fill=0)
            var odd = Array[Floats, NR](fill=0)
            comptime for r in range(NR):
                var raw = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[UInt32]()
                    .unsafe_load[width=ROWS](pair * ROWS)
                )
                even[r] = _even(raw)
                odd[r] = _odd(raw)
            comptime for m in range(MR):
                var x0 = Floats(xf.unsafe_load(2 * pair * MR + m))
                var x1 = Floats(xf.unsafe_load((2 * pair + 1) * MR + m))
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
                comptime for m in range(MR):
                    var x0 = Floats(xf.unsafe_load(last * MR + m))
                    acc[m * NR + r] = fma(_even(raw), x0, acc[m * NR + r])
    else:
        comptime dtype = DType.float32 if kind == F32 else DType.float16
        for k in range(columns):
            var wv = Array[Floats, NR](fill=0)
            comptime for r in range(NR):
                wv[r] = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[Scalar[dtype]]()
                    .unsafe_load[width=ROWS](k * ROWS)
                    .cast[.float32]()
                )
            comptime for m in range(MR):
                var xv = Floats(xf.unsafe_load(k * MR + m))
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
