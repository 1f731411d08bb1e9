"""Rows of activations, interleaved as the tiles of quantized weights read them.

`MR` rows lie together, a part (32 columns) at a time. A part of rounded rows is
`[WORDS][MR]` words of 4 bytes, of each row

  words 0 to 7    int8, the codes of 4 columns each
  SCALE           float32, what they are multiplied by
  LESS_TOTAL      float32, less the sum of all 32 columns
  LESS_SUMS       int32, less the sum of the first 16 codes,
  LESS_SUMS + 1   of the last 16,
  LESS_SUMS + 2   and of all

of rows that are not rounded `[PART + 3][MR]` float32:

  words 0 to 31   the columns
  PART            less the sum of the first 16,
  PART + 1        of the last 16,
  PART + 2        and of all

Sums are negated here, for the compiler would shuffle what it has to negate later. The
total is the last sum times the scale: it is read for each panel.
"""

from std.memory import bitcast

from .layout import PART
from .numbers import nearest

comptime SCALE = PART // 4
comptime LESS_TOTAL = SCALE + 1
comptime LESS_SUMS = LESS_TOTAL + 1
comptime WORDS = LESS_SUMS + 3


def row_part_bytes[rounded: Bool]() -> Int:
    """Bytes of one row in a part."""
    return 4 * (WORDS if rounded else PART + 3)


def row_bytes[rounded: Bool](columns: Int) -> Int:
    """Bytes of an interleaved row."""
    return columns // PART * row_part_bytes[rounded]()


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
    """Interleaves columns `begin` to `end - 1` of `MR` rows."""
    for b in range(begin // PART, end // PART):
        var base = dst.unsafe_offset(b * row_part_bytes[rounded]() * MR)
        var floats = base.unsafe_bitcast[Float32]()
        var words = base.unsafe_bitcast[Int32]()
        for m in range(MR):
            var v = x.unsafe_load[width=PART](m * columns + b * PART)
            comptime if rounded:
                # A maximum passes over NaN; times 0 it and infinity are NaN.
                var largest = abs(v).reduce_max() + (v * 0).reduce_add()
                var scale = largest / 127.0
                var inverse = 127.0 / largest if largest > 0 else Float32(0)
                var q = nearest[PART](v, inverse)
                var codes = bitcast[.int32, PART // 4](q.cast[.int8]())
                comptime for i in range(PART // 4):
                    words.unsafe_store(i * MR + m, codes[i])
                var first = -q.slice[16, offset=0]().reduce_add()
                var last = -q.slice[16, offset=16]().reduce_add()
                floats.unsafe_store(SCALE * MR + m, scale)
                floats.unsafe_store(
                    LESS_TOTAL * MR + m, scale * (first + last).cast[.float32]()
                )
                words.unsafe_store(LESS_SUMS * MR + m, first)
                words.unsafe_store((LESS_SUMS + 1) * MR + m, last)
                words.unsafe_store((LESS_SUMS + 2) * MR + m, first + last)
            else:
                comptime for i in range(PART):
                    floats.unsafe_store(i * MR + m, v[i])
                var low = -v.slice[16, offset=0]().reduce_add()
                var high = -v.slice[16, offset=16]().reduce_add()
                floats.unsafe_store(PART * MR + m, low)
                floats.unsafe_store((PART + 1) * MR + m, high)
                floats.unsafe_store((PART + 2) * MR + m, low + high)
