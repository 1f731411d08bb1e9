"""Products of packed activations and panels of weights of any kind."""

from std.sys.info import CompilationTarget

from . import dense, quantized
from .layout import BF16, ROWS, Floats, is_dense, panel_bytes


def has_vnni[portable: Bool]() -> Bool:
    comptime if portable:
        return False
    else:
        return CompilationTarget.has_vnni() and CompilationTarget.has_avx512f()


def rounds[kind: Int, portable: Bool, bfloat16: Bool]() -> Bool:
    """Whether the activations are rounded: to int8, or for dense weights bfloat16.
    """
    comptime if is_dense[kind]():
        return kind == BF16 and bfloat16
    else:
        return has_vnni[portable]()


def _has_bfloat16[portable: Bool]() -> Bool:
    comptime if portable:
        return False
    else:
        return (
            CompilationTarget.has_avx512f()
            and CompilationTarget._has_feature["avx512bf16"]()
        )


def max_rows[portable: Bool]() -> Int:
    """Rows of activations in a tile, as many as the registers hold."""
    comptime if portable:
        return 4
    else:
        return 8 if CompilationTarget.has_avx512f() else 4


def max_panels[portable: Bool]() -> Int:
    comptime if portable:
        return 1
    else:
        return 2 if CompilationTarget.has_avx512f() else 1


@fieldwise_init
struct Matrix(ImplicitlyCopyable):
    """The place of one of the weights."""

    var panel: Int
    """Bytes of a panel."""
    var rows: Int
    var first: Int
    """The column of `y` that its first row makes."""


def packed_row_bytes[dense_weights: Bool, rounded: Bool](columns: Int) -> Int:
    """Bytes of a packed row of activations."""
    comptime if dense_weights:
        return dense.packed_row_bytes[rounded](columns)
    else:
        return quantized.packed_row_bytes[rounded](columns)


@inline(.always)
def pack_rows[
    dense_weights: Bool, rounded: Bool, MR: Int
](dst: MutPointer[UInt8, _], x: ImmPointer[Float32, _], columns: Int):
    comptime if dense_weights:
        dense.pack_rows[rounded, MR](dst, x, columns)
    else:
        quantized.pack_rows[rounded, MR](dst, x, columns)


@inline(.always)
def _tile[
    Write: def(Int, Int, Floats, Int) -> None,
    //,
    kind: Int,
    portable: Bool,
    rounded: Bool,
    MR: Int,
    NR: Int,
](
    write: Write,
    token: Int,
    column: Int,
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    rows: Int,
):
    """Writes `MR` rows of `y` from `token`, at most `rows` columns from `column`."""
    var panel = panel_bytes[kind](columns)
    var acc: Array[Floats, MR * NR]
    comptime if is_dense[kind]() and rounded:
        acc = dense.rounded_tile[_has_bfloat16[portable](), MR, NR](
            xp, w, columns, panel
        )
    elif is_dense[kind]():
        acc = dense.dense_tile[kind, MR, NR](xp, w, columns, panel)
    else:
        acc = quantized.quantized_tile[kind, rounded, MR, NR](
            xp, w, columns, panel
        )
    comptime for m in range(MR):
        comptime for r in range(NR):
            write(
                token + m,
                column + r * ROWS,
                acc[m * NR + r],
                rows - r * ROWS,
            )


@inline(.always)
def _panels[
    Write: def(Int, Int, Floats, Int) -> None,
    //,
    kind: Int,
    portable: Bool,
    rounded: Bool,
    NR: Int,
](
    write: Write,
    column: Int,
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    tokens: Int,
    columns: Int,
    rows: Int,
    x_row: Int,
):
    """All rows of activations by `NR` panels, which stay in the cache."""
    comptime max_mr = max_rows[portable]()
    var m = 0
    comptime for step in range(4):
        comptime MR = max_mr >> step
        comptime if MR > 0:
            while tokens - m >= MR:
                _tile[kind, portable, rounded, MR, NR](
                    write,
                    m,
                    column,
                    xp.unsafe_offset(m * x_row),
                    w,
                    columns,
                    rows,
                )
                m += MR


def multiply_panels[
    Write: def(Int, Int, Floats, Int) -> None,
    //,
    kind: Int,
    portable: Bool,
    rounded: Bool,
](
    write: Write,
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    matrix: Matrix,
    begin: Int,
    end: Int,
    tokens: Int,
    columns: Int,
    x_row: Int,
):
    """Multiplies all rows of activations by some panels.

    Args:
        write: Takes a token, a column of `y`, the sums from there on, and how
            many of them are to be written if not all.
        xp: All rows, from `pack_rows`.
        w: The weight.
        matrix: Its place.
        begin: The first panel.
        end: The end of the panels.
        tokens: How many rows.
        columns: Columns of the weight.
        x_row: Bytes of a packed row.
    """
    comptime max_nr = max_panels[portable]()
    comptime alone = alone_panels[kind, portable]()
    var p = begin
    while p < end:
        var wp = w.unsafe_offset(p * matrix.panel)
        var column = matrix.first + p * ROWS
        var rows = matrix.rows - p * ROWS
        if tokens == 1 and p + alone <= end:
            _tile[kind, portable, rounded, 1, alone](
                write, 0, column, xp, wp, columns, rows
            )
            p += alone
        elif p + max_nr <= end:
            _panels[kind, portable, rounded, max_nr](
                write, column, xp, wp, tokens, columns, rows, x_row
            )
            p += max_nr
        else:
            _panels[kind, portable, rounded, 1](
                write, column, xp, wp, tokens, columns, rows, x_row
            )
            p += 1


def alone_panels[kind: Int, portable: Bool]() -> Int:
    """Panels that a token alone takes at a time.

    It waits for memory, which is fastest read from end to end; dense panels
    take several, for sums that do not wait for one another.
    """
    return 2 * max_panels[portable]() if is_dense[kind]() else 1
