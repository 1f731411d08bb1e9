"""Matmul of many rounded rows with quantized weights, on x86.

What `quantized.mojo` computes, in the same order. But the registers do not hold a
tile's sums beside its dot products, and a compiler that may unroll spills both. So
here a part's codes are unpacked once, and the rows take turns with them: in registers
are only the dot products of one turn, and with AVX-512 the codes.
"""

from .activations import row_part_bytes
from .codes import Codes, quads
from .dots import AVX2, HAS, VNNI_256, VNNI_512, signs_codes, unpacked_dots
from .encodings import encoding
from .fetch import fetch_ahead
from .layout import LINE, PART, ROWS, Floats
from .quantized import add_part
from .scales import SubScales, minima, scales

comptime PREFERRED = HAS == AVX2 or HAS == VNNI_256 or HAS == VNNI_512
"""Whether tiles of enough rows are multiplied here."""
comptime MAX_ROWS = 16
"""Rows in a tile. More share the work of unpacking, in more of the cache."""
comptime TURN = 8 if HAS == VNNI_512 else 4
"""Rows in a turn, and in the smallest tile: their dot products are eight registers."""


@inline(.always)
def unpacked_tile[
    kind: Int, MR: Int
](
    xp: ImmPointer[UInt8, _], panel: ImmPointer[UInt8, _], columns: Int
) -> Array[Floats, MR]:
    """Multiplies `MR` rows of activations by a panel.

    Args:
        xp: The rows, from `activations.interleave_rows`, rounded.
        panel: The panel.
        columns: Columns of the weight, a multiple of the block's.

    Returns:
        `[MR]` vectors of 16 output rows.
    """
    comptime e = encoding[kind]()
    comptime block_columns = e.block_columns
    comptime block_bytes = e.block_bytes()
    comptime parts = e.parts()
    comptime bytes = block_bytes // parts
    # Scales in a part.
    comptime halves = PART // e.scale_columns
    comptime assert MR % TURN == 0, "the last turn has fewer rows"
    var sums = Array[Floats, MR](fill=0)
    var acc = sums.unsafe_ptr().unsafe_bitcast[Float32]()
    var store = Array[Codes, 8](fill=0)
    var codes = store.unsafe_ptr().unsafe_bitcast[UInt8]()
    for b in range(columns // block_columns):
        var block = panel.unsafe_offset(b * block_bytes)
        var sub_scales = SubScales[kind](block)
        for part in range(parts):
            fetch_ahead[bytes](block.unsafe_offset(part * bytes))
            comptime for i in range(4):
                var pair = quads[kind, i](block, part)
                comptime for side in range(2):
                    var line = pair[side]
                    comptime if signs_codes[kind]():
                        line ^= 128
                    codes.unsafe_store((4 * side + i) * LINE, line)
            var xb = xp.unsafe_offset(
                (b * parts + part) * row_part_bytes[True]() * MR
            )
            comptime for half in range(halves):
                var scale = scales[kind](block, sub_scales, part, half)
                var minimum = minima[kind](block, sub_scales, part, half, scale)
                for begin in range(0, MR, TURN):
                    var products = unpacked_dots[kind, MR, TURN, half](
                        xb.unsafe_bitcast[Int32](), codes, begin
                    )
                    comptime for k in range(TURN):
                        var m = begin + k
                        acc.unsafe_store(
                            m * ROWS,
                            add_part[kind, True, MR, half](
                                acc.unsafe_load[width=ROWS](m * ROWS),
                                products[k].cast[.float32](),
                                scale,
                                minimum,
                                xb,
                                m,
                            ),
                        )
    return sums^
