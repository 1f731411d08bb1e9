"""One row of a panel of any kind, as numbers."""
from . import dense, narrow
from .codes import quads
from .encodings import encoding, is_dense, is_narrow
from .layout import PART
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
        return
    for k in range(columns):
        comptime if is_dense[kind]():
            to.unsafe_store(k, dense.dense_weight[kind](panel, row, k))
        else:
            to.unsafe_store(k, _quantized_weight[kind](panel, row, k))


def _quantized_weight[
    kind: Int
](panel: ImmPointer[UInt8, _], row: Int, column: Int) -> Float32:
    """Returns one weight of a panel."""
    comptime e = encoding[kind]()
    comptime columns = e.block_columns
    comptime block_bytes = e.block_bytes()
    var block = panel.unsafe_offset(column // columns * block_bytes)
    var part = column % columns // PART
    var within = column % PART
    var code: UInt8 = 0
    comptime for i in range(4):
        if within % 16 // 4 == i:
            var pair = quads[kind, i](block, part)
            code = (pair[1] if within >= 16 else pair[0])[row * 4 + within % 4]
    var sub_scales = SubScales[kind](block)
    var scale = scales[kind](block, sub_scales, part, within // 16)
    var minimum = minima[kind](block, sub_scales, part, within // 16, scale)
    return scale[row] * code.cast[.float32]() - minimum[row]
