"""Matmul of rows rounded to bfloat16 with bfloat16 weights, by AMX.

All rows are multiplied so, and be it one: AMX adds in an order of its own, the same for
any number of rows. Where there are many, they and the weights are cut so that a core's
caches hold what is multiplied: `DEPTH` columns of `GROUP` panels and of `TOKENS` rows.
"""

from std.math import ceildiv

from .amx import (
    FIRST_A,
    FIRST_B,
    TILE_BYTES,
    TILE_ROWS,
    add_product,
    clear,
    configure,
    load,
    release,
    store,
)
from .fetch import fetch_near
from .layout import LINE, ROWS, Floats

comptime STEP = 32
"""Columns of a tile of rows. A weight's are a multiple."""
comptime MAX_ROWS = 2 * TILE_ROWS
"""Rows that are multiplied at a time."""
comptime MAX_PANELS = 2
"""Panels that they are multiplied by."""
comptime BLOCK_BYTES = 4 * TILE_BYTES
"""Bytes of their sums."""
comptime DEPTH = 1024
comptime GROUP = 16
comptime TOKENS = 1024


def panel_bytes(columns: Int) -> Int:
    """Bytes of a panel."""
    return 2 * columns * ROWS


def row_bytes(columns: Int) -> Int:
    """Bytes of an interleaved row of activations."""
    return 2 * columns


@inline(.always)
def interleave_rows(
    dst: MutPointer[UInt8, _],
    x: ImmPointer[Float32, _],
    rows: Int,
    columns: Int,
    begin: Int,
    end: Int,
):
    """Interleaves columns `begin` to `end - 1`, multiples of 32, of at most `MAX_ROWS`
    rows: `[columns / 32][rows][32]` bfloat16.
    """
    var d = dst.unsafe_bitcast[BFloat16]()
    for row in range(rows):
        for k in range(begin, end, STEP):
            d.unsafe_store(
                k * rows + row * STEP,
                x.unsafe_load[width=STEP](row * columns + k).cast[.bfloat16](),
            )


@inline(.always)
def _add_products[
    halves: Int, NR: Int
](
    sums: MutPointer[UInt8, _],
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    rows: Int,
    columns: Int,
    panel: Int,
    first: Bool,
    fetches: Bool,
):
    """Adds to `sums` the products of rows of activations and of panels.

    Parameters:
        halves: Tiles of rows, 1 or 2.
        NR: Panels, 1 or 2.

    Args:
        sums: `[halves][2][16][16]` float32, of the rows that there are.
        xp: The rows, from `interleave_rows`, from their first column on.
        w: The first panel, from there on too.
        rows: How many rows, for which the tiles are configured.
        columns: How many columns.
        panel: Bytes from one panel to the next.
        first: Whether `sums` are zero so far.
        fetches: Whether the panels come from memory, not from a cache.
    """
    comptime for half in range(halves):
        comptime for r in range(NR):
            comptime c = 2 * half + r
            if first:
                clear[c]()
            else:
                load[c](sums.unsafe_offset(c * TILE_BYTES))
    for step in range(columns // STEP):
        var x = xp.unsafe_offset(step * rows * LINE)
        comptime for half in range(halves):
            load[FIRST_A + half](x.unsafe_offset(half * TILE_BYTES))
        comptime for r in range(NR):
            var at = w.unsafe_offset(r * panel + step * TILE_BYTES)
            if fetches:
                fetch_near[TILE_BYTES](at)
            load[FIRST_B + r](at)
            comptime for half in range(halves):
                add_product[2 * half + r, FIRST_A + half, FIRST_B + r]()
    comptime for half in range(halves):
        comptime for r in range(NR):
            comptime c = 2 * half + r
            store[c](sums.unsafe_offset(c * TILE_BYTES))


def multiply_panels[
    Write: def(Int, Int, Floats, Int) -> None, //
](
    write: Write,
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    panels: Int,
    column: Int,
    rows: Int,
    tokens: Int,
    columns: Int,
):
    """Multiplies all rows of activations by some panels.

    Args:
        write: As in `multiply.multiply_panels`.
        xp: All rows, from `interleave_rows`.
        w: The first panel.
        panels: How many.
        column: The column of `y` that the first panel's first row computes.
        rows: How many rows of the weight there are from that one on.
        tokens: How many rows of activations.
        columns: Columns of the weight.
    """
    # Few rows stay in the cache whole.
    var few = tokens <= MAX_ROWS
    var depth = columns if few else DEPTH
    var panel = panel_bytes(columns)
    var blocks = ceildiv(min(tokens, TOKENS), MAX_ROWS)
    var pairs = ceildiv(min(panels, GROUP), MAX_PANELS)
    var memory = List[UInt8](
        unsafe_uninit_length=blocks * pairs * BLOCK_BYTES + LINE
    )
    var unaligned = memory.unsafe_ptr()
    var sums = unaligned.unsafe_offset(-Int(unaligned) & (LINE - 1))
    var configured = 0
    for chunk in range(0, tokens, TOKENS):
        for group in range(0, panels, GROUP):
            for k in range(0, columns, depth):
                var deep = min(depth, columns - k)
                var sum = sums
                for token in range(chunk, min(tokens, chunk + TOKENS), MAX_ROWS):
                    var count = min(MAX_ROWS, tokens - token)
                    if count != configured:
                        configure(count)
                        configured = count
                    var x = xp.unsafe_offset(
                        token * row_bytes(columns) + k * count * 2
                    )
                    for p in range(group, min(panels, group + GROUP), MAX_PANELS):
                        var wp = w.unsafe_offset(p * panel + k * 2 * ROWS)
                        var pair = min(MAX_PANELS, panels - p)
                        comptime for halves in range(1, 3):
                            comptime for NR in range(1, MAX_PANELS + 1):
                                if ceildiv(count, TILE_ROWS) == halves and pair == NR:
                                    _add_products[halves, NR](
                                        sum, x, wp, count, deep, panel, k == 0, few
                                    )
                        if k + deep == columns:
                            _write_sums(
                                write,
                                ImmPointer(sum),
                                token,
                                column + p * ROWS,
                                count,
                                rows - p * ROWS,
                                pair,
                            )
                        sum = sum.unsafe_offset(BLOCK_BYTES)
    release()
    _ = memory^


@inline(.always)
def _write_sums[
    Write: def(Int, Int, Floats, Int) -> None, //
](
    write: Write,
    sums: ImmPointer[UInt8, _],
    token: Int,
    column: Int,
    count: Int,
    rows: Int,
    panels: Int,
):
    """Writes the sums of `count` tokens from `token` on and of one panel or two, which
    are for the columns from `column` on, `rows` of them at most.
    """
    var floats = sums.unsafe_bitcast[Float32]()
    for m in range(count):
        for r in range(panels):
            var tile = m // TILE_ROWS * 2 + r
            write(
                token + m,
                column + r * ROWS,
                floats.unsafe_load[width=ROWS](
                    (tile * TILE_ROWS + m % TILE_ROWS) * ROWS
                ),
                rows - r * ROWS,
            )
