"""Matmul of rounded rows with quantized weights, on x86 without AVX-512.

What `quantized.mojo` computes, in the same order. But 16 registers of 256 bits do not
hold a tile's sums beside its dot products, and a compiler that may unroll spills both.
So here a part's codes are unpacked into memory once, and the rows take turns with
them: in registers are only the dot products of one turn.
"""

from .codes import Codes, minima, quads, scales
from .dots import AVX2, HAS, VNNI_256, signs_codes, unpacked_dots
from .encodings import encoding
from .fetch import fetch_ahead
from .layout import LINE, PART, ROWS, Floats
from .quantized import add_part, row_bytes

comptime PREFERRED = HAS == AVX2 or HAS == VNNI_256
"""Whether tiles of `TURN` rows and more are multiplied here."""
comptime MAX_ROWS = 16
"""Rows in a tile. More share the work of unpacking, in more of the cache."""
comptime TURN = 4
"""Rows in a turn: their dot products are eight registers."""


@inline(.always)
def unpacked_tile[
    kind: Int, MR: Int
](
    xp: ImmPointer[UInt8, _], panel: ImmPointer[UInt8, _], columns: Int
) -> Array[Floats, MR]:
    """Multiplies `MR` rows of activations by a panel.

    Args:
        xp: The rows, from `quantized.interleave_rows`, rounded.
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
    # Scales in a part, and lines of codes that share one.
    comptime halves = PART // e.scale_columns
    comptime lines = 8 // halves
    comptime assert MR % TURN == 0, "the last turn has fewer rows"
    var sums = Array[Floats, MR](fill=0)
    var acc = sums.unsafe_ptr().unsafe_bitcast[Float32]()
    var store = Array[Codes, 8](fill=0)
    var codes = store.unsafe_ptr().unsafe_bitcast[UInt8]()
    for b in range(columns // block_columns):
        var block = panel.unsafe_offset(b * block_bytes)
        for part in range(parts):
            fetch_ahead[bytes](block.unsafe_offset(part * bytes))
            comptime for i in range(4):
                var pair = quads[kind, i](block, part)
                comptime for side in range(2):
                    var line = pair[side]
                    comptime if signs_codes[kind]():
                        line ^= 128
                    codes.unsafe_store((4 * side + i) * LINE, line)
            var xb = xp.unsafe_offset((b * parts + part) * row_bytes[True](PART) * MR)
            var x = xb.unsafe_bitcast[Int32]()
            var rest = xb.unsafe_offset(PART * MR).unsafe_bitcast[Float32]()
            comptime for half in range(halves):
                comptime first = half * lines
                var scale = scales[kind](block, part, half)
                var minimum = minima[kind](block, part, half, scale)
                for begin in range(0, MR, TURN):
                    var products = unpacked_dots[kind, MR, TURN, lines](
                        x.unsafe_offset(first * MR + begin),
                        codes.unsafe_offset(first * LINE),
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
                                rest,
                                m,
                            ),
                        )
    return sums^
