"""One row of a panel of any kind, as numbers."""

from std.memory import bitcast

from . import dense, narrow
from .codes import quads
from .encodings import encoding, is_dense, is_narrow
from .layout import PART, ROWS
from .scales import SubScales, minima, scales


def write_row[
    kind: Int
](
    panel: ImmPointer[UInt8, _],
    columns: Int,
    row: Int,
    to: MutPointer[Float32, _],
):
    """Writes `[columns]` weights.

    Args:
        panel: The panel.
        columns: How many it has.
        row: Which of its 16 rows.
        to: Where to.
    """
    comptime if is_narrow[kind]():
        narrow.write_row(panel, columns, row, to)
    elif is_dense[kind]():
        for k in range(columns):
            to.unsafe_store(k, dense.dense_weight[kind](panel, row, k))
    else:
        _write_quantized_row[kind](panel, columns, row, to)


def _write_quantized_row[
    kind: Int
](
    panel: ImmPointer[UInt8, _],
    columns: Int,
    row: Int,
    to: MutPointer[Float32, _],
):
    """What `write_row` does, of codes."""
    comptime e = encoding[kind]()
    for b in range(columns // e.block_columns):
        var block = panel.unsafe_offset(b * e.block_bytes())
        var sub_scales = SubScales[kind](block)
        for part in range(e.parts()):
            var first = b * e.block_columns + part * PART
            comptime for half in range(2):
                var scale = scales[kind](block, sub_scales, part, half)
                var minimum = minima[kind](
                    block, sub_scales, part, half, scale
                )
                comptime for i in range(4):
                    var pair = quads[kind, i](block, part)
                    var four = bitcast[.uint32, ROWS](pair[half])[row]
                    comptime for j in range(4):
                        var code = (four >> UInt32(8 * j)) & 255
                        to.unsafe_store(
                            first + 16 * half + 4 * i + j,
                            scale[row] * code.cast[.float32]() - minimum[row],
                        )
