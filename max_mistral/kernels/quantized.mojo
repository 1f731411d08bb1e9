"""Matmul with quantized weights, a part (32 columns) at a time.

A weight is `scale * code - minimum` (`layout.mojo`), so one part adds

    scale * sum(code * x) - minimum * sum(x)

`rounded` activations are int8, with one scale per 32 columns, and `sum(code * x)`
is exact in int32 (`dots.mojo`). So is `sum((code - bias) * x)`, where a weight is
`scale * (code - bias)`. Otherwise everything is float32.
Either way a row's sum is taken in the same order however many rows there are.
"""

from std.math import fma
from std.memory import bitcast

from .activations import LESS_SUMS, LESS_TOTAL, SCALE, row_part_bytes
from .codes import quads
from .dots import HAS, VNNI_512, dots, which_sum
from .encodings import encoding
from .fetch import PAGE, fetch_ahead, fetch_page
from .layout import PART, ROWS, Floats
from .scales import SubScales, minima, scales


@inline(.always)
def _products[
    kind: Int, rounded: Bool, MR: Int, NR: Int, half: Int
](
    xb: ImmPointer[UInt8, _], w: ImmPointer[UInt8, _], part: Int, panel: Int
) -> Array[Floats, MR * NR]:
    """`sum(code * x)`; of rounded rows what `dots` has.

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
        comptime for r in range(NR):
            var sums = dots[kind, MR, half](
                xb.unsafe_bitcast[Int32](), w.unsafe_offset(r * panel), part
            )
            comptime for m in range(MR):
                products[m * NR + r] = sums[m].cast[.float32]()
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
    xb: ImmPointer[UInt8, _],
    m: Int,
) -> Floats:
    """Adds to a row's sums what the columns of a part that share a scale add.

    Args:
        sums: Of row `m` of the activations and of 16 output rows.
        products: What `_products` has for them.
        scale: The weights' scale.
        minimum: What is subtracted from `scale * code`. Without minima it is the bias's
            part, which products of rounded rows do not have.
        xb: The rows' part.
        m: Which of its `MR` rows.
    """
    comptime e = encoding[kind]()
    comptime which = which_sum[kind, half]()
    var x = xb.unsafe_bitcast[Float32]()
    comptime if not rounded:
        var total = x.unsafe_load((PART + which) * MR + m)
        return fma(minimum, Floats(total), fma(products, scale, sums))
    var by = x.unsafe_load(SCALE * MR + m)
    var found = fma(products, scale * Floats(by), sums)
    comptime if e.has_minima:
        var total: Float32
        comptime if which == 2:
            total = x.unsafe_load(LESS_TOTAL * MR + m)
        else:
            var codes = xb.unsafe_bitcast[Int32]()
            var sum = codes.unsafe_load((LESS_SUMS + which) * MR + m)
            total = by * sum.cast[.float32]()
        found = fma(minimum, Floats(total), found)
    return found


def _fetches[kind: Int, rounded: Bool, MR: Int]() -> Bool:
    """Whether to fetch all lines ahead. Only the first of each page is faster where
    few instructions come to a line (measured on a Zen 4).
    """
    comptime whole = encoding[kind]().low_bits == 8
    comptime if rounded and HAS == VNNI_512:
        return MR > (4 if whole else 2)
    return MR > (1 if whole else 0)


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
        xp: The rows, from `activations.interleave_rows`.
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
    comptime assert block_bytes <= PAGE, "a page has no block's begin"
    # Scales in a part.
    comptime halves = PART // e.scale_columns
    var acc = Array[Floats, MR * NR](fill=0)
    for b in range(columns // block_columns):
        var sub_scales = Array[SubScales[kind], NR](uninitialized=True)
        comptime for r in range(NR):
            var block = w.unsafe_offset(r * panel + b * block_bytes)
            sub_scales[r] = SubScales[kind](block)
            comptime if not _fetches[kind, rounded, MR]():
                fetch_page(block)
        for part in range(parts):
            comptime if _fetches[kind, rounded, MR]():
                comptime for r in range(NR):
                    fetch_ahead[bytes](
                        w.unsafe_offset(
                            r * panel + b * block_bytes + part * bytes
                        )
                    )
            var xb = xp.unsafe_offset(
                (b * parts + part) * row_part_bytes[rounded]() * MR
            )
            comptime for half in range(halves):
                var products = _products[kind, rounded, MR, NR, half](
                    xb, w.unsafe_offset(b * block_bytes), part, panel
                )
                comptime for r in range(NR):
                    var block = w.unsafe_offset(r * panel + b * block_bytes)
                    var scale = scales[kind](block, sub_scales[r], part, half)
                    var minimum = minima[kind](
                        block, sub_scales[r], part, half, scale
                    )
                    comptime for m in range(MR):
                        comptime at = m * NR + r
                        acc[at] = add_part[kind, rounded, MR, half](
                            acc[at], products[at], scale, minimum, xb, m
                        )
    return acc^
