"""Matmul with quantized weights, a part (32 columns) at a time.

A weight is `scale * code - minimum` (`layout.mojo`), so one part adds

    scale * sum(code * x) - minimum * sum(x)

`rounded` activations are int8, with one scale per 32 columns, and `sum(code * x)`
is exact in int32 (`dots.mojo`). Otherwise everything is float32.
Either way a row's sum is taken in the same order however many rows there are.
"""

from std.math import fma
from std.memory import bitcast

from .codes import minima, quads, scales
from .dots import dots, signs_codes
from .encodings import encoding
from .fetch import fetch_ahead
from .layout import PART, ROWS, Floats
from .numbers import nearest


def row_bytes[rounded: Bool](columns: Int) -> Int:
    """Bytes of an interleaved row of activations."""
    return columns // PART * _part_bytes[rounded]()


def _part_bytes[rounded: Bool]() -> Int:
    """Bytes of one row of activations in a part."""
    comptime sums = 3 * 4
    return PART + 4 + sums if rounded else PART * 4 + sums


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
    """Interleaves columns `begin` to `end - 1` of `MR` rows. Each part is

      rounded   [8][MR][4] int8, [MR] float32 scales
      else      [32][MR] float32

    and then `[3][MR]` float32: less the sum of its first 16 columns, of its last, and
    of all. Negated here, for the compiler would shuffle what it has to negate later.
    """
    for b in range(begin // PART, end // PART):
        var base = dst.unsafe_offset(b * _part_bytes[rounded]() * MR)
        comptime for m in range(MR):
            var v = x.unsafe_load[width=PART](m * columns + b * PART)
            comptime if rounded:
                var largest = abs(v).reduce_max()
                var scale = largest / 127.0
                var inverse = 127.0 / largest if largest > 0 else Float32(0)
                var q = nearest[PART](v, inverse)
                var words = bitcast[.int32, 8](q.cast[.int8]())
                comptime for i in range(8):
                    base.unsafe_bitcast[Int32]().unsafe_store(
                        i * MR + m, words[i]
                    )
                var rest = base.unsafe_offset(PART * MR).unsafe_bitcast[Float32]()
                rest.unsafe_store(m, scale)
                var low = q.slice[16, offset=0]().reduce_add()
                var high = q.slice[16, offset=16]().reduce_add()
                var first = -(scale * low.cast[.float32]())
                var last = -(scale * high.cast[.float32]())
                rest.unsafe_store(MR + m, first)
                rest.unsafe_store(2 * MR + m, last)
                rest.unsafe_store(3 * MR + m, first + last)
            else:
                var floats = base.unsafe_bitcast[Float32]()
                comptime for i in range(PART):
                    floats.unsafe_store(i * MR + m, v[i])
                var low = -v.slice[16, offset=0]().reduce_add()
                var high = -v.slice[16, offset=16]().reduce_add()
                floats.unsafe_store(PART * MR + m, low)
                floats.unsafe_store((PART + 1) * MR + m, high)
                floats.unsafe_store((PART + 2) * MR + m, low + high)


@inline(.always)
def _products[
    kind: Int, rounded: Bool, MR: Int, NR: Int, half: Int
](
    xb: ImmPointer[UInt8, _], w: ImmPointer[UInt8, _], part: Int, panel: Int
) -> Array[Floats, MR * NR]:
    """`sum(code * x)` as `dots` has it, of float32 rows too.

    Args:
        xb: The rows' part.
        w: The first panel's block.
        part: Which of the block's.
        panel: Bytes from one panel to the next.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    comptime both = encoding[kind]().scale_columns == PART
    var products = Array[Floats, MR * NR](fill=0)
    comptime if rounded:
        var sums = dots[kind, MR, NR, half](
            xb.unsafe_bitcast[Int32](), w, part, panel
        )
        comptime for at in range(MR * NR):
            products[at] = sums[at].cast[.float32]()
        return products^
    var x = xb.unsafe_bitcast[Float32]()
    comptime for i in range(4):
        comptime for r in range(NR):
            var pair = quads[kind, i](w.unsafe_offset(r * panel), part)
            comptime for side in range(2):
                comptime if both or side == half:
                    var quad = bitcast[.uint32, ROWS](pair[side])
                    comptime for j in range(4):
                        comptime column = 16 * side + 4 * i + j
                        var code = (quad >> UInt32(8 * j)) & 255
                        var number = code.cast[.float32]()
                        comptime for m in range(MR):
                            comptime at = m * NR + r
                            products[at] = fma(
                                number,
                                Floats(x.unsafe_load(column * MR + m)),
                                products[at],
                            )
    return products^


@inline(.always)
def add_part[
    kind: Int, rounded: Bool, MR: Int, half: Int
](
    sums: Floats,
    products: Floats,
    scale: Floats,
    minimum: Floats,
    rest: ImmPointer[Float32, _],
    m: Int,
) -> Floats:
    """Adds to a row's sums what the columns of a part that share a scale add.

    Args:
        sums: Of row `m` of the activations and of 16 output rows.
        products: `sum(code * x)`.
        scale: The weights' scale.
        minimum: What is subtracted from `scale * code`.
        rest: The activations' part, after their values.
        m: Which of its `MR` rows.
    """
    comptime skip = MR if rounded else 0
    var factor = scale
    comptime if rounded:
        factor = scale * Floats(rest.unsafe_load(m))
    var found = fma(products, factor, sums)
    # Signed codes need no minimum.
    comptime if not (rounded and signs_codes[kind]()):
        comptime which = 2 if encoding[kind]().scale_columns == PART else half
        var total = rest.unsafe_load(skip + which * MR + m)
        found = fma(minimum, Floats(total), found)
    return found


@inline(.always)
def quantized_tile[
    kind: Int, rounded: Bool, MR: Int, NR: Int
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
                (b * parts + part) * _part_bytes[rounded]() * MR
            )
            var rest = xb.unsafe_offset(
                (PART if rounded else 4 * PART) * MR
            ).unsafe_bitcast[Float32]()
            comptime for half in range(halves):
                var products = _products[kind, rounded, MR, NR, half](
                    xb, w.unsafe_offset(b * block_bytes), part, panel
                )
                comptime for r in range(NR):
                    var block = w.unsafe_offset(r * panel + b * block_bytes)
                    var scale = scales[kind](block, part, half)
                    var minimum = minima[kind](block, part, half, scale)
                    comptime for m in range(MR):
                        comptime at = m * NR + r
                        acc[at] = add_part[kind, rounded, MR, half](
                            acc[at], products[at], scale, minimum, rest, m
                        )
    return acc^
