"""Weights of bfloat16 in 12 bits each, without loss.

Where few rows are multiplied, memory is the limit, and this reads three quarters.

A panel of `K` columns has `K / 2` lines, each two columns of 16 rows as in a panel of
BF16. Nearly all of its weights have one of 16 exponents: 4 bits say which, beside sign
and mantissa. A line that has another exponent is kept whole, and takes the place of
what its 12 bits say.

  head      [2][16] uint16      the exponents, times 2^7; twice
            [kept + 1] uint32   numbers of the lines kept whole, ascending; then K / 2
            zeros up to a whole line
  groups    [K / 8][192] bytes  four lines each
  whole     [kept][16][2] bfloat16

  kept = max(4, K / 64), rounded down

A group is three vectors of [16] uint32, whose halves are a row's two columns. Vectors
0 and 1 have signs and mantissas: 0 those of lines 0 and 1, 1 those of lines 2 and 3.
The first line's are where a bfloat16 has them (`FIXED`), the second's are rotated right
by 8 bits. Vector 2 has places in the table of exponents: those of line `i` are bits
4 `i` to 4 `i` + 3 of each half.
"""

from std.bit import rotate_bits_left
from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from .dense import Pairs, add_line
from .encodings import narrow_head, narrow_lines
from .fetch import fetch_later
from .layout import LINE, ROWS, Floats

# Lines of a group, and its bytes.
comptime LINES = 4
comptime GROUP = 3 * LINE
# Sign and mantissa of both bfloat16 of a word.
comptime FIXED: UInt32 = 0x807F807F
# What 16 words have in their halves; the exponents, twice.
comptime Halves = SIMD[DType.uint16, 2 * ROWS]
comptime HAS_BW = CompilationTarget._has_feature["avx512bw"]()
# How many groups ahead is fetched. Less, or into the first level of cache, is
# slower for 8 rows and more.
comptime FETCHED = 32
# Sums that fit the registers beside the words of a group.
comptime SUMS = 8

comptime Unpacked = Optional[MutPointer[UInt32, MutUntrackedOrigin]]
"""Where a tile writes the panels that it unpacks, if it does."""


struct Panel[origin: ImmOrigin](ImplicitlyCopyable):
    """A panel that is read from its first group to its last."""

    var exponents: Halves
    """By what 4 bits say; a fifth makes no difference."""
    var next: Int
    """The next line that is kept whole; `K / 2` if there is none."""
    var _numbers: ImmPointer[UInt32, Self.origin]
    """The numbers of the lines kept whole, from `next` on."""
    var _groups: ImmPointer[UInt8, Self.origin]
    """All of them."""
    var _whole: ImmPointer[UInt8, Self.origin]
    """The lines kept whole, from `next` on."""

    def __init__(out self, panel: ImmPointer[UInt8, Self.origin], columns: Int):
        self.exponents = panel.unsafe_bitcast[UInt16]().unsafe_load[width=2 * ROWS](0)
        self._numbers = panel.unsafe_offset(LINE).unsafe_bitcast[UInt32]()
        self.next = Int(self._numbers.unsafe_load(0))
        self._groups = panel.unsafe_offset(narrow_head(columns))
        self._whole = self._groups.unsafe_offset(columns // 8 * GROUP)

    @inline(.always)
    def group(self, g: Int) -> ImmPointer[UInt8, Self.origin]:
        return self._groups.unsafe_offset(g * GROUP)

    @inline(.always)
    def whole(self) -> Pairs:
        """Returns the next line that is kept whole."""
        return self._whole.unsafe_bitcast[UInt32]().unsafe_load[width=ROWS](0)

    @inline(.always)
    def skip(mut self):
        """Goes on to the one after it."""
        self._whole = self._whole.unsafe_offset(LINE)
        self._numbers = self._numbers.unsafe_offset(1)
        self.next = Int(self._numbers.unsafe_load(0))

    @inline(.always)
    def lines(mut self, g: Int) -> Array[Pairs, LINES]:
        """Returns the lines of group `g`, as a panel of BF16 has them."""
        var words = self.group(g).unsafe_bitcast[UInt32]()
        var places = words.unsafe_load[width=ROWS](2 * ROWS)
        var found = Array[Pairs, LINES](fill=0)
        comptime for i in range(LINES):
            var fixed = words.unsafe_load[width=ROWS](i // 2 * ROWS)
            comptime if i % 2 == 1:
                fixed = rotate_bits_left[8](fixed)
            var exponents = looked_up(self.exponents, places >> UInt32(4 * i))
            found[i] = (fixed & FIXED) | exponents
        if self.next < LINES * (g + 1):
            comptime for i in range(LINES):
                if self.next == LINES * g + i:
                    found[i] = self.whole()
                    self.skip()
        return found^


@inline(.always)
def looked_up(table: Halves, places: Pairs) -> Pairs:
    """Returns numbers of a table for both halves of words, of which 5 bits count."""
    var at = bitcast[.uint16, 2 * ROWS](places)
    comptime if HAS_BW:
        return bitcast[.uint32, ROWS](
            llvm_intrinsic["llvm.x86.avx512.permvar.hi.512", Halves](table, at)
        )
    else:
        var found = Halves(0)
        comptime for i in range(2 * ROWS):
            found[i] = table[Int(at[i] & 15)]
        return bitcast[.uint32, ROWS](found)


@inline(.always)
def narrow_tile[
    rounded: Bool, native: Bool, MR: Int, NR: Int, keeps: Bool = False
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
    unpacked: Unpacked = None,
) -> Array[Floats, MR * NR]:
    """What `dense_tile` does, in the same order.

    Parameters:
        rounded: As there.
        native: As there.
        MR: How many rows.
        NR: How many panels.
        keeps: Whether to write the panels as BF16 too, for other tiles.

    Args:
        xp: The rows, from `dense.interleave_rows`.
        w: The first panel.
        columns: Columns of the weight, a multiple of 8.
        panel: Bytes from one panel to the next.
        unpacked: Where to write the panels, one after another.

    Returns:
        `[MR][NR]` vectors of 16 output rows.
    """
    var acc = Array[Floats, MR * NR](fill=0)
    # The panels take turns, as many at a time as there is room for.
    comptime several = max(1, min(NR, SUMS // MR))
    comptime for first in range(0, NR, several):
        comptime count = min(several, NR - first)
        var to = unpacked
        comptime if keeps:
            to = unpacked.value().unsafe_offset(first * columns // 2 * ROWS)
        var some = _tile[rounded, native, MR, count, keeps](
            xp, w.unsafe_offset(first * panel), columns, panel, to
        )
        comptime for m in range(MR):
            comptime for r in range(count):
                acc[m * NR + first + r] = some[m * count + r]
    return acc^


@inline(.always)
def _tile[
    rounded: Bool, native: Bool, MR: Int, NR: Int, keeps: Bool
](
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    panel: Int,
    unpacked: Unpacked,
) -> Array[Floats, MR * NR]:
    """What `narrow_tile` does, with all panels at once."""
    var acc = Array[Floats, MR * NR](fill=0)
    var panels = Array[Panel[w.origin], NR](fill=Panel(w, columns))
    comptime for r in range(1, NR):
        panels[r] = Panel(w.unsafe_offset(r * panel), columns)
    var groups = columns // 8
    for g in range(groups):
        # At the panels' end, of those that are next.
        var later = g + FETCHED
        if later >= groups:
            later += NR * panel // GROUP - groups
        var lines = Array[Pairs, NR * LINES](fill=0)
        comptime for r in range(NR):
            # As in `dense_tile`, where weights need conversion.
            comptime if MR > 2:
                fetch_later[GROUP](panels[r].group(later))
            var found = panels[r].lines(g)
            comptime for i in range(LINES):
                lines[i * NR + r] = found[i]
                comptime if keeps:
                    var at = (r * groups + g) * LINES + i
                    unpacked.value().unsafe_store(at * ROWS, found[i])
        comptime for i in range(LINES):
            var line = Array[Pairs, NR](fill=0)
            comptime for r in range(NR):
                line[r] = lines[i * NR + r]
            add_line[rounded, native, MR, NR](acc, line, xp, LINES * g + i)
    return acc^


def write_row(
    panel: ImmPointer[UInt8, _],
    columns: Int,
    row: Int,
    to: MutPointer[Float32, _],
):
    """Writes `[columns]` weights of one row of a panel."""
    var lines = Panel(panel, columns)
    for g in range(columns // 8):
        var found = lines.lines(g)
        comptime for i in range(LINES):
            var word = found[i][row]
            var pair = SIMD[.uint32, 2](word << 16, word & 0xFFFF0000)
            to.unsafe_store(2 * (LINES * g + i), bitcast[.float32, 2](pair))
