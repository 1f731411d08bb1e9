"""Matmul of interleaved activations and panels of a weight of any kind."""

from . import amx_dense, dense, narrow, quantized, unpacked
from .encodings import BF16, is_dense, is_narrow, panel_bytes
from .layout import LINE, ROWS, Floats
from .tiles import (
    TILE_SIZES,
    avx512,
    filled,
    max_panels,
    max_rows,
    one_row_panels,
    takes_several,
    unpacks,
)


@fieldwise_init
struct Matrix(ImplicitlyCopyable):
    """One of the weights of a linear op."""

    var panel: Int
    """Bytes of a panel."""
    var rows: Int
    var first: Int
    """The column of `y` that its first row computes."""


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
    tokens: Int,
):
    """Writes `MR` rows of `y` from `token` on, `rows` columns at most from `column` on.

    Where one row more than there are `tokens` fills up the tile, it is not written.
    """
    var panel = panel_bytes[kind](columns)
    var acc: Array[Floats, MR * NR]
    comptime native = avx512[portable, "avx512bf16"]()
    comptime if is_narrow[kind]():
        acc = narrow.narrow_tile[rounded, native, MR, NR](xp, w, columns, panel)
    elif is_dense[kind]():
        acc = dense.dense_tile[kind, rounded, native, MR, NR](
            xp, w, columns, panel
        )
    elif unpacks[kind, rounded]() and MR >= unpacked.TURN:
        comptime assert NR == 1, "its tiles have one panel"
        acc = rebind_var[Array[Floats, MR * NR]](
            unpacked.unpacked_tile[kind, MR](xp, w, columns)
        )
    else:
        acc = quantized.quantized_tile[kind, rounded, MR, NR](
            xp, w, columns, panel
        )
    _write[MR, NR](write, token, column, acc, rows, tokens)


@inline(.always)
def _write[
    Write: def(Int, Int, Floats, Int) -> None, //, MR: Int, NR: Int
](
    write: Write,
    token: Int,
    column: Int,
    acc: Array[Floats, MR * NR],
    rows: Int,
    tokens: Int,
):
    """Writes what a tile computed; see `_tile`."""
    comptime for m in range(MR):
        # `filled` adds a row to no smaller tile.
        comptime if MR >= 4 and m == MR - 1:
            if token + m == tokens:
                return
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
    first: Int = 0,
):
    """Multiplies the rows of activations from `first` on by `NR` panels, which stay in
    the cache."""
    comptime max_mr = max_rows[kind, portable, rounded, False]()
    var m = first
    comptime for step in range(TILE_SIZES):
        comptime MR = max_mr >> step
        comptime if MR > 0:
            while filled(tokens) - m >= MR:
                _tile[kind, portable, rounded, MR, NR](
                    write,
                    m,
                    column,
                    xp.unsafe_offset(m * x_row),
                    w,
                    columns,
                    rows,
                    tokens,
                )
                m += MR


def multiply_panels[
    Write: def(Int, Int, Floats, Int) -> None,
    //,
    kind: Int,
    portable: Bool,
    rounded: Bool,
    amx: Bool = False,
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
        write: Takes a token, a column of `y`, 16 sums from there on, and how many
            of them to write: all if that is 16 or more.
        xp: All rows, `filled`, from `interleave_rows`.
        w: The weight.
        matrix: Its sizes.
        begin: The first panel.
        end: The panel after the last.
        tokens: How many rows.
        columns: Columns of the weight.
        x_row: Bytes of an interleaved row.
    """
    comptime if amx:
        amx_dense.multiply_panels(
            write,
            xp,
            w.unsafe_offset(begin * matrix.panel),
            end - begin,
            matrix.first + begin * ROWS,
            matrix.rows - begin * ROWS,
            tokens,
            columns,
        )
        return
    comptime max_nr = max_panels[kind, portable, rounded]()
    comptime several = one_row_panels[kind, portable, rounded]()
    comptime if is_narrow[kind]():
        if tokens > max_rows[kind, portable, rounded, False]():
            _multiply_unpacking[kind, portable, rounded](
                write, xp, w, matrix, begin, end, tokens, columns, x_row
            )
            return
    var together = takes_several[kind, portable, rounded](tokens, matrix.panel)
    var p = begin
    while p < end:
        var wp = w.unsafe_offset(p * matrix.panel)
        var column = matrix.first + p * ROWS
        var rows = matrix.rows - p * ROWS
        if together and p + several <= end:
            _tile[kind, portable, rounded, 1, several](
                write, 0, column, xp, wp, columns, rows, tokens
            )
            p += several
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


@no_inline
def _multiply_unpacking[
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
    """What `multiply_panels` does, of panels in 12 bits that the first of several tiles
    unpacks for the others.
    """
    comptime max_nr = max_panels[kind, portable, rounded]()
    comptime MR = max_rows[kind, portable, rounded, False]()
    comptime native = avx512[portable, "avx512bf16"]()
    var store = List[UInt8](
        unsafe_uninit_length=max_nr * panel_bytes[BF16](columns) + LINE
    )
    var start = store.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
    var unpacked = start.unsafe_offset(-Int(start) & (LINE - 1))
    var p = begin
    while p < end:
        var column = matrix.first + p * ROWS
        var rows = matrix.rows - p * ROWS
        var wp = w.unsafe_offset(p * matrix.panel)

        @inline(.always)
        def panels[NR: Int]() {imm}:
            var acc = narrow.narrow_tile[rounded, native, MR, NR, True](
                xp, wp, columns, matrix.panel, unpacked.unsafe_bitcast[UInt32]()
            )
            _write[MR, NR](write, 0, column, acc, rows, tokens)
            _panels[BF16, portable, rounded, NR](
                write, column, xp, unpacked, tokens, columns, rows, x_row, MR
            )

        if p + max_nr <= end:
            panels[max_nr]()
            p += max_nr
        else:
            panels[1]()
            p += 1
    _ = store^
