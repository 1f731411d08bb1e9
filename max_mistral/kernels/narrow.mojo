"""Weights of bfloat16 in 12 bits each, without loss: what memory gives is the limit
where few rows are multiplied, and this is three quarters of it.

A panel of `K` columns has `K / 2` lines, each two columns of 16 rows as in a panel of
BF16. Nearly all of its weights have one of 16 exponents in a row, from the panel's
`base` on: 4 bits beside sign and mantissa. A line that has another exponent is kept
whole, and takes the place of what its 12 bits say.

  head      uint32                base * 2^7, in both halves
            [kept + 1] uint32     numbers of the lines kept whole, ascending; then K / 2
            zeros up to a whole line
  groups    [K / 8][192] bytes    four lines each
  whole     [kept][16][2] bfloat16

  kept = max(4, K / 64)

A group is three vectors of [16] uint32, whose halves are a row's two columns. Vectors
0 and 1 have signs and mantissas: 0 those of lines 0 and 1, 1 those of lines 2 and 3.
The first line's are where a bfloat16 has them (`FIXED`), the second's are rotated right
by 8 bits. Vector 2 has exponents less `base`: those of line `i` are where a bfloat16
has the low 4 bits of its own (`EXPONENT`), rotated right by 4 `i`.
"""

from std.bit import rotate_bits_left
from std.memory import bitcast

from .dense import Pairs, add_line
from .encodings import narrow_head, narrow_lines
from .fetch import fetch, fetch_later
from .layout import LINE, ROWS, Floats

# Lines of a group, and its bytes.
comptime LINES = 4
comptime GROUP = 3 * LINE
# Sign and mantissa of both bfloat16 of a word; the low 4 bits of their exponents.
comptime FIXED: UInt32 = 0x807F807F
comptime EXPONENT: UInt32 = 0x07800780
# How many groups ahead is fetched. Less, or into the first level of cache, is
# slower for 8 rows and more.
comptime FETCHED = 32
# Sums that fit the registers beside the words of a group.
comptime SUMS = 8

comptime Unpacked = Optional[MutPointer[UInt32, MutUntrackedOrigin]]


struct Panel[origin: ImmOrigin](ImplicitlyCopyable):
    """A panel that is read from its first group to its last."""

    var base: UInt32
    var next: Int
    """The next line that is kept whole."""
    var _numbers: ImmPointer[UInt32, Self.origin]
    """That of the next, and of those after it."""
    var _groups: ImmPointer[UInt8, Self.origin]
    var _whole: ImmPointer[UInt8, Self.origin]
    """The next."""

    def __init__(out self, panel: ImmPointer[UInt8, Self.origin], columns: Int):
        var head = panel.unsafe_bitcast[UInt32]()
        self.base = head.unsafe_load(0)
        self._numbers = head.unsafe_offset(1)
        self.next = Int(self._numbers.unsafe_load(0))
        self._groups = panel.unsafe_offset(narrow_head(columns))
        self._whole = self._groups.unsafe_offset(columns // 8 * GROUP)
        fetch[2 * LINE](self._whole)

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
        fetch[LINE](self._whole.unsafe_offset(LINE))
        self._numbers = self._numbers.unsafe_offset(1)
        self.next = Int(self._numbers.unsafe_load(0))

    @inline(.always)
    def lines(mut self, g: Int) -> Array[Pairs, LINES]:
        """Returns the lines of group `g`, as a panel of BF16 has them."""
        var words = self.group(g).unsafe_bitcast[UInt32]()
        var exponents = words.unsafe_load[width=ROWS](2 * ROWS)
        var found = Array[Pairs, LINES](fill=0)
        comptime for i in range(LINES):
            var fixed = words.unsafe_load[width=ROWS](i // 2 * ROWS)
            found[i] = joined[ROWS, i](fixed, exponents, self.base)
        if self.next < LINES * (g + 1):
            comptime for i in range(LINES):
                if self.next == LINES * g + i:
                    found[i] = self.whole()
                    self.skip()
        return found^


@inline(.always)
def joined[
    width: Int, i: Int
](
    fixed: SIMD[DType.uint32, width],
    exponents: SIMD[DType.uint32, width],
    base: UInt32,
) -> SIMD[DType.uint32, width]:
    """Returns words of line `i` of a group, of its two vectors' words."""
    comptime turned = 8 if i % 2 == 1 else 0
    var found = rotate_bits_left[turned](fixed) & FIXED
    found |= rotate_bits_left[4 * i](exponents) & EXPONENT
    # No carry: an exponent of 8 bits ends before the sign, or the second half.
    return found + base


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
            # As in `dense_tile`.
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
        var words = lines.group(g).unsafe_bitcast[UInt32]().unsafe_offset(row)
        var exponents = words.unsafe_load(2 * ROWS)
        comptime for i in range(LINES):
            var line = LINES * g + i
            var word = joined[1, i](
                words.unsafe_load(i // 2 * ROWS), exponents, lines.base
            )
            if line == lines.next:
                word = lines.whole()[row]
                lines.skip()
            var pair = SIMD[.uint32, 2](word << 16, word & 0xFFFF0000)
            to.unsafe_store(2 * line, bitcast[.float32, 2](pair))
