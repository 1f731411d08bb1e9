"""Matmul with floating-point weights: float32, bfloat16, float16.

Sums are float32. Activations are float32 too, unless those of bfloat16 weights
are `rounded` to bfloat16. A row's sum is taken in the same order however many
rows there are, so a request computes the same in any batch.
"""

from std.math import ceildiv, fma
from std.memory import bitcast
from std.sys import size_of

from .encodings import encoding
from .fetch import fetch_ahead
from .layout import LINE, ROWS, Floats
from .words import dot_pairs, even, odd

comptime Pairs = SIMD[DType.uint32, ROWS]
"""Two bfloat16 of each row."""
comptime HalfPairs = SIMD[DType.uint32, ROWS // 2]
"""Eight pairs of bfloat16 of one row."""


def row_bytes[rounded: Bool](columns: Int) -> Int:
    """Bytes of an interleaved row of activations."""
    return ceildiv(columns, 2) * (4 if rounded else 8)


@inline(.always)
def interleave_rows[
    rounded: Bool, MR: Int
](
    dst: MutPointer[UInt8, _],
    x: ImmPointer[Float32, _],
    columns: Int,
    begin: Int,
    end: Int,
):
    """Interleaves columns `begin` to `end - 1` of `MR` rows. `begin` is a multiple of
    16. An odd last column is followed by zeros.

      rounded   [ceil(columns / 2)][MR][2] bfloat16
      else      [ceil(columns / 2)][2][MR] float32
    """
    comptime if rounded:
        var d = dst.unsafe_bitcast[UInt32]()
        var k = begin
        while k + ROWS <= end:
            var pairs = Array[HalfPairs, MR](fill=0)
            comptime for m in range(MR):
                var numbers = x.unsafe_load[width=ROWS](m * columns + k)
                pairs[m] = bitcast[.uint32, ROWS // 2](numbers.cast[.bfloat16]())
            d.unsafe_store(k // 2 * MR, _interleaved(pairs))
            k += ROWS
        while k < end:
            comptime for m in range(MR):
                var pair = SIMD[.float32, 2](x.unsafe_load(m * columns + k), 0)
                if k + 1 < end:
                    pair[1] = x.unsafe_load(m * columns + k + 1)
                d.unsafe_store(
                    k // 2 * MR + m, bitcast[.uint32, 1](pair.cast[.bfloat16]())
                )
            k += 2
    else:
        var d = dst.unsafe_bitcast[Float32]()
        for k in range(begin, end):
            comptime for m in range(MR):
                d.unsafe_store(k * MR + m, x.unsafe_load(m * columns + k))
        if end % 2 == 1:
            comptime for m in range(MR):
                d.unsafe_store(end * MR + m, 0)


@inline(.always)
def _interleaved[
    MR: Int
](rows: Array[HalfPairs, MR]) -> SIMD[DType.uint32, MR * ROWS // 2]:
    """The first pairs of all rows, then the second ones, and so on. `MR` is a power of
    two."""
    comptime size = MR * ROWS // 2
    comptime if MR == 1:
        return rebind[SIMD[DType.uint32, size]](rows[0])
    else:
        var evens = Array[HalfPairs, MR // 2](fill=0)
        var odds = Array[HalfPairs, MR // 2](fill=0)
        comptime for i in range(MR // 2):
            evens[i] = rows[2 * i]
            odds[i] = rows[2 * i + 1]
        return rebind[SIMD[DType.uint32, size]](
            _interleaved(evens).interleave(_interleaved(odds))
        )


@inline(.always)
def dense_tile[
    kind: Int, rounded: Bool, native: Bool, MR: Int, NR: Int
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
) -> Array[Floats, MR * NR]:
    """Multiplies `MR` rows of activations by `NR` panels.

    Parameters:
        kind: Of the weight.
        rounded: Whether the rows are bfloat16; the weight is too, then.
        native: Whether to multiply those by x86's AVX512-BF16.
        MR: How many rows.
        NR: How many panels.

    Args:
        xp: The rows, from `interleave_rows`.
        w: The first panel.
        columns: Columns of the weight.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    comptime dtype = encoding[kind]().dtype
    comptime assert not rounded or dtype == .bfloat16, "only BF16 rounds rows"
    var acc = Array[Floats, MR * NR](fill=0)
    var xf = xp.unsafe_bitcast[Float32]()

    @inline(.always)
    def fetch[bytes: Int](k: Int) {imm}:
        # Few rows are read as fast as memory gives them (measured on a Zen 4): more
        # where weights need no conversion.
        comptime as_it_is = native and (rounded or dtype == .float32)
        comptime if MR > (4 if as_it_is else 2):
            comptime for r in range(NR):
                fetch_ahead[bytes](w.unsafe_offset(r * panel + k * bytes))

    comptime if dtype == .bfloat16:
        for k in range(ceildiv(columns, 2)):
            fetch[LINE](k)
            var wv = Array[Pairs, NR](fill=0)
            comptime for r in range(NR):
                wv[r] = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[UInt32]()
                    .unsafe_load[width=ROWS](k * ROWS)
                )
            add_line[rounded, native, MR, NR](acc, wv, xp, k)
    else:
        comptime column_bytes = ROWS * size_of[dtype]()
        for k in range(columns):
            fetch[column_bytes](k)
            var wv = Array[Floats, NR](fill=0)
            comptime for r in range(NR):
                wv[r] = (
                    w.unsafe_offset(r * panel)
                    .unsafe_bitcast[Scalar[dtype]]()
                    .unsafe_load[width=ROWS](k * ROWS)
                    .cast[.float32]()
                )
            comptime for m in range(MR):
                var x = Floats(xf.unsafe_load(k * MR + m))
                comptime for r in range(NR):
                    acc[m * NR + r] = fma(wv[r], x, acc[m * NR + r])
    return acc^


@inline(.always)
def add_line[
    rounded: Bool, native: Bool, MR: Int, NR: Int
](
    mut acc: Array[Floats, MR * NR],
    line: Array[Pairs, NR],
    xp: ImmPointer[UInt8, _],
    k: Int,
):
    """Adds the products of `MR` rows of activations and line `k` of `NR` panels, two
    columns of bfloat16; see `dense_tile`.
    """
    comptime for m in range(MR):
        comptime if rounded:
            var x = Pairs(xp.unsafe_bitcast[UInt32]().unsafe_load(k * MR + m))
            comptime for r in range(NR):
                comptime at = m * NR + r
                acc[at] = dot_pairs[native, ROWS](acc[at], line[r], x)
        else:
            var x = xp.unsafe_bitcast[Float32]()
            var first = Floats(x.unsafe_load(2 * k * MR + m))
            var second = Floats(x.unsafe_load((2 * k + 1) * MR + m))
            comptime for r in range(NR):
                comptime at = m * NR + r
                acc[at] = fma(even[ROWS](line[r]), first, acc[at])
                acc[at] = fma(odd[ROWS](line[r]), second, acc[at])


def dense_weight[
    kind: Int
](panel: ImmPointer[UInt8, _], row: Int, column: Int) -> Float32:
    """Returns one weight of a panel."""
    comptime e = encoding[kind]()
    comptime dtype = e.dtype
    comptime columns = e.block_columns
    var block = column // columns * ROWS * columns
    return (
        panel.unsafe_bitcast[Scalar[dtype]]()
        .unsafe_load(block + row * columns + column % columns)
        .cast[.float32]()
    )
