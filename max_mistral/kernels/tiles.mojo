"""Sizes of tiles, by the kind of weight and the CPU; rows interleaved for them."""

from std.sys.info import CompilationTarget

from . import activations, amx_dense, dense, unpacked
from .amx import has_bfloat16
from .dots import HAS, NO_DOTS, VNNI_512
from .encodings import BF16, encoding, is_dense

# Tiles have `max_rows` rows, or half of that and so on, down to one.
comptime TILE_SIZES = 5
comptime LONG_PANEL = 32 * 1024


def avx512[portable: Bool, feature: StaticString = "avx512f"]() -> Bool:
    """Whether to use AVX-512 and one of its features, by LLVM's name."""
    comptime if portable or not CompilationTarget.has_avx512f():
        return False
    else:
        return CompilationTarget._has_feature[feature]()


def rounds[kind: Int, portable: Bool]() -> Bool:
    """Whether the tiles of a kind of weight can take rounded activations."""
    comptime if is_dense[kind]():
        return encoding[kind]().dtype == .bfloat16
    else:
        return not portable and HAS != NO_DOTS


def takes_amx[kind: Int, rounded: Bool]() -> Bool:
    """Whether the tiles of a kind of weight can be AMX's."""
    return kind == BF16 and rounded and has_bfloat16()


def unpacks[kind: Int, rounded: Bool]() -> Bool:
    """Whether tiles of enough rows are those of `unpacked.mojo`."""
    return rounded and not is_dense[kind]() and unpacked.PREFERRED


def max_rows[kind: Int, portable: Bool, rounded: Bool, amx: Bool]() -> Int:
    """Rows of activations in a tile; the same for all kinds that are not dense."""
    comptime if amx:
        return amx_dense.MAX_ROWS
    elif unpacks[kind, rounded]():
        return unpacked.MAX_ROWS
    else:
        # As many as the registers hold.
        return 8 if avx512[portable]() else 4


def filled[amx: Bool = False](tokens: Int) -> Int:
    """How many rows the tiles have: one more than there are where three are left.

    A tile of four, one of them zeros, takes less time than one of two and one of one.
    """
    comptime if amx:
        return tokens
    else:
        return tokens + 1 if tokens % 4 == 3 else tokens


def max_panels[kind: Int, portable: Bool, rounded: Bool]() -> Int:
    """Panels in a tile, as many as the registers hold; one where rows take turns."""
    comptime if unpacks[kind, rounded]():
        return 1
    else:
        return 2 if avx512[portable]() else 1


def row_bytes[dense_weights: Bool, rounded: Bool](columns: Int) -> Int:
    """Bytes of an interleaved row of activations."""
    comptime if dense_weights:
        return dense.row_bytes[rounded](columns)
    else:
        return activations.row_bytes[rounded](columns)


@inline(.always)
def interleave_rows[
    kind: Int, portable: Bool, rounded: Bool, amx: Bool = False
](
    dst: MutPointer[UInt8, _],
    x: ImmPointer[Float32, _],
    tokens: Int,
    columns: Int,
    begin: Int,
    end: Int,
):
    """Interleaves rows of activations, as the tiles of `multiply_panels` read them.

    Args:
        dst: Where to.
        x: `[tokens, columns]`, of which only the columns named are read.
        tokens: How many rows, as `filled` has it.
        columns: Columns of the weight.
        begin: The first column, a multiple of 32.
        end: The column after the last: a multiple of 32, or `columns`.
    """
    comptime if amx:
        amx_dense.interleave_rows(dst, x, tokens, columns, begin, end)
        return
    comptime max_mr = max_rows[kind, portable, rounded, False]()
    var x_row = row_bytes[is_dense[kind](), rounded](columns)
    var m = 0
    comptime for step in range(TILE_SIZES):
        comptime MR = max_mr >> step
        comptime if MR > 0:
            while tokens - m >= MR:
                var to = dst.unsafe_offset(m * x_row)
                var rows = x.unsafe_offset(m * columns)
                comptime if is_dense[kind]():
                    dense.interleave_rows[rounded, MR](
                        to, rows, columns, begin, end
                    )
                else:
                    activations.interleave_rows[rounded, MR](
                        to, rows, columns, begin, end
                    )
                m += MR


def one_row_panels[kind: Int, portable: Bool, rounded: Bool]() -> Int:
    """Panels in a tile of one row, when there is no other row.

    Then memory is the limit, and it is fastest read in order: one panel. Dense
    weights need several panels, to have enough sums that do not wait for one
    another. So do long panels of codes that take many instructions, to have enough
    reads under way.
    """
    comptime e = encoding[kind]()
    comptime quick = e.has_nibbles() or e.low_bits == 8
    comptime if is_dense[kind]():
        return 2 * max_panels[kind, portable, rounded]()
    elif rounded and not quick and HAS == VNNI_512:
        return 4
    else:
        return 1


def takes_several[
    kind: Int, portable: Bool, rounded: Bool
](tokens: Int, panel: Int) -> Bool:
    """Whether `one_row_panels` are multiplied together: of one row alone, unless they
    are several and short.

    Short ones end before the CPU's prefetcher has caught up (measured on a Zen 4).

    Args:
        tokens: How many rows.
        panel: Bytes of a panel.
    """
    comptime several = one_row_panels[kind, portable, rounded]()
    comptime if is_dense[kind]() or several == 1:
        return tokens == 1
    return tokens == 1 and panel >= LONG_PANEL
