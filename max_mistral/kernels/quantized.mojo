"""Matmul with quantized weights, a part (32 columns) at a time.

A weight is `scale * code - minimum` (`layout.mojo`), so one part adds

    scale * sum(code * x) - minimum * sum(x)

With x86's VNNI the activations are rounded to int8, with one scale per 32
columns, and `sum(code * x)` is exact in int32. Without it everything is float32.
Either way a row's sum is taken in the same order however many rows there are.
"""

from std.math import fma
from std.memory import bitcast
from std.sys import llvm_intrinsic

from .codes import Codes, minima, quads, scales
from .fetch import fetch_ahead
from .layout import PART, ROWS, Floats, encoding


def row_bytes[vnni: Bool](columns: Int) -> Int:
    """Bytes of an interleaved row of activations."""
    return columns // PART * _part_bytes[vnni]()


def _part_bytes[vnni: Bool]() -> Int:
    """Bytes of one row of activations in a part."""
    comptime sums = 2 * 4
    return PART + 4 + sums if vnni else PART * 4 + sums


@inline(.always)
def interleave_rows[
    vnni: Bool, MR: Int
](dst: MutPointer[UInt8, _], x: ImmPointer[Float32, _], columns: Int):
    """Interleaves `MR` rows of activations. Each part is

      VNNI   [8][MR][4] int8, [MR] float32 scales
      else   [32][MR] float32

    and then `[2][MR]` float32: the sums of its first and of its last 16 columns.
    """
    for b in range(columns // PART):
        var base = dst.unsafe_offset(b * _part_bytes[vnni]() * MR)
        comptime for m in range(MR):
            var v = x.unsafe_load[width=PART](m * columns + b * PART)
            comptime if vnni:
                var largest = abs(v).reduce_max()
                var scale = largest / 127.0
                var inverse = 127.0 / largest if largest > 0 else Float32(0)
                # Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
                var q = (
                    bitcast[.int32, PART](v * inverse + 12582912.0) - 0x4B400000
                )
                var words = bitcast[.int32, 8](q.cast[.int8]())
                comptime for i in range(8):
                    base.unsafe_bitcast[Int32]().unsafe_store(
                        i * MR + m, words[i]
                    )
                var rest = base.unsafe_offset(PART * MR).unsafe_bitcast[Float32]()
                rest.unsafe_store(m, scale)
                var low = q.slice[16, offset=0]().reduce_add()
                var high = q.slice[16, offset=16]().reduce_add()
                rest.unsafe_store(MR + m, scale * low.cast[.float32]())
                rest.unsafe_store(2 * MR + m, scale * high.cast[.float32]())
            else:
                var floats = base.unsafe_bitcast[Float32]()
                comptime for i in range(PART):
                    floats.unsafe_store(i * MR + m, v[i])
                var low = v.slice[16, offset=0]().reduce_add()
                var high = v.slice[16, offset=16]().reduce_add()
                floats.unsafe_store(PART * MR + m, low)
                floats.unsafe_store((PART + 1) * MR + m, high)


@inline(.always)
def _dot4(
    acc: SIMD[.int32, ROWS], codes: Codes, x: SIMD[.int32, ROWS]
) -> SIMD[.int32, ROWS]:
    """Adds to each lane the dot product of four uint8 codes and four int8s."""
    return llvm_intrinsic[
        "llvm.x86.avx512.vpdpbusd.512", SIMD[DType.int32, ROWS]
    ](acc, codes, bitcast[.uint8, 4 * ROWS](x))


@inline(.always)
def _dots[
    kind: Int, vnni: Bool, MR: Int, NR: Int, half: Int
](
    xb: ImmPointer[UInt8, _], w: ImmPointer[UInt8, _], part: Int, panel: Int
) -> Array[Floats, MR * NR]:
    """`sum(code * x)` over the columns of a part that share a scale.

    All of them, or the 16 of `half`. One sum for a row and a panel, so that a tile's
    sums stay in registers; two if there is but one, for it would wait for itself.

    Args:
        xb: The rows' part.
        w: The first panel's block.
        part: Which of the block's.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    comptime both = encoding[kind]().scale_columns == PART
    comptime chains = 2 if both and vnni and MR * NR == 1 else 1
    var xi = xb.unsafe_bitcast[Int32]()
    var xf = xb.unsafe_bitcast[Float32]()
    var dots = Array[Floats, MR * NR](fill=0)
    var sums = Array[SIMD[.int32, ROWS], chains * MR * NR](fill=0)
    comptime for i in range(4):
        comptime for r in range(NR):
            # Columns 4 i to 4 i + 3 of each 16.
            var pair = quads[kind, i](w.unsafe_offset(r * panel), part)
            comptime for side in range(2):
                comptime if both or side == half:
                    comptime if vnni:
                        comptime for m in range(MR):
                            comptime at = chains * (m * NR + r) + side % chains
                            var x = xi.unsafe_load((4 * side + i) * MR + m)
                            sums[at] = _dot4(
                                sums[at], pair[side], SIMD[.int32, ROWS](x)
                            )
                    else:
                        var quad = bitcast[.uint32, ROWS](pair[side])
                        comptime for j in range(4):
                            comptime column = 16 * side + 4 * i + j
                            var code = (quad >> UInt32(8 * j)) & 255
                            var number = code.cast[.float32]()
                            comptime for m in range(MR):
                                comptime at = m * NR + r
                                var x = xf.unsafe_load(column * MR + m)
                                dots[at] = fma(number, Floats(x), dots[at])
    comptime if vnni:
        comptime for at in range(MR * NR):
            var total = sums[chains * at]
            comptime if chains == 2:
                total += sums[2 * at + 1]
            dots[at] = total.cast[.float32]()
    return dots^


@inline(.always)
def quantized_tile[
    kind: Int, vnni: Bool, MR: Int, NR: Int
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
) -> Array[Floats, MR * NR]:
    """Multiplies `MR` rows of activations by `NR` panels.

    Args:
        xp: The rows, from `interleave_rows`.
        w: The first panel.
        columns: Columns of the weight, a multiple of the block's.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    comptime e = encoding[kind]()
    comptime block_columns = e.block_columns
    comptime block_bytes = e.block_bytes()
    comptime parts = e.parts()
    comptime bytes = block_bytes // parts
    # Scales in a part.
    comptime halves = PART // e.scale_columns
    var acc = Array[Floats, MR * NR](fill=0)
    for b in range(columns // block_columns):
        for part in range(parts):
            # One row of codes of 8 bits is read as fast as memory gives it.
            comptime if MR > 1 or e.low_bits < 8:
                comptime for r in range(NR):
                    fetch_ahead[bytes](
                        w.unsafe_offset(
                            r * panel + b * block_bytes + part * bytes
                        )
                    )
            var xb = xp.unsafe_offset(
                (b * parts + part) * _part_bytes[vnni]() * MR
            )
            var rest = xb.unsafe_offset(
                (PART if vnni else 4 * PART) * MR
            ).unsafe_bitcast[Float32]()
            comptime skip = MR if vnni else 0
            comptime for half in range(halves):
                var dots = _dots[kind, vnni, MR, NR, half](
                    xb, w.unsafe_offset(b * block_bytes), part, panel
                )
                comptime for r in range(NR):
                    var block = w.unsafe_offset(r * panel + b * block_bytes)
                    var scale = scales[kind](block, part, half)
                    var minimum = minima[kind](block, part, half, scale)
                    comptime for m in range(MR):
                        comptime at = m * NR + r
                        var factor = scale
                        comptime if vnni:
                            factor = scale * Floats(rest.unsafe_load(m))
                        var total = rest.unsafe_load(skip + half * MR + m)
                        comptime if halves == 1:
                            total += rest.unsafe_load(skip + MR + m)
                        acc[at] = fma(dots[at], factor, acc[at])
                        acc[at] = fma(minimum, Floats(-total), acc[at])
    return acc^
