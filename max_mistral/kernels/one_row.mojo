"""One row of a panel of any kind, as numbers."""
from .encodings import is_dense, is_narrow

from . import codes, dense, narrow


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
            to.unsafe_store(k, codes.quantized_weight[kind](panel, row, k))
