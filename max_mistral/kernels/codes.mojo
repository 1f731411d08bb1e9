"""Reads codes of quantized weights out of packed blocks."""

from std.memory import bitcast

from .encodings import encoding
from .layout import LINE, ROWS

comptime Codes = SIMD[DType.uint8, LINE]


@inline(.always)
def shifted[by: Int, mask: UInt8](x: Codes) -> Codes:
    """Shifts each byte left (right if `by` is negative), then masks it.

    x86 cannot shift bytes. Shifting words moves bits across bytes, and the mask
    clears those.
    """
    var words = bitcast[.uint32, ROWS](x)
    comptime if by >= 0:
        words = words << UInt32(by)
    else:
        words = words >> UInt32(-by)
    return bitcast[.uint8, LINE](words) & mask


@inline(.always)
def quads[
    kind: Int, i: Int, *, large: Bool = False
](block: ImmPointer[UInt8, _], part: Int) -> Tuple[Codes, Codes]:
    """Returns the codes of 16 rows in two groups of four columns of a part.

    Columns `4 i` to `4 i + 3`, and columns `16 + 4 i` to `16 + 4 i + 3`.

    Parameters:
        kind: Of the weight.
        i: Which four.
        large: Whether the second group's codes, which have 4 bits, stay where they
            are in their bytes, so that they are 16 times as large.
    """
    comptime e = encoding[kind]()
    comptime assert e.has_nibbles() or not large, "these codes have more bits"
    comptime codes_at = e.codes_at()
    comptime part_bytes = e.part_bytes()
    comptime extra_at = e.extra_bits_at()
    var codes = block.unsafe_offset(codes_at + part * part_bytes)
    # All lines of 2 bits have some of these columns' bits.
    comptime first = 0 if e.low_bits == 2 else i * LINE
    var line = codes.unsafe_load[width=LINE](first)
    comptime if e.low_bits == 8:
        return (line, codes.unsafe_load[width=LINE]((4 + i) * LINE))
    elif e.low_bits == 6:
        return (_six_bits[i](codes), _six_bits[i](codes.unsafe_offset(3 * LINE)))
    else:
        var low: Codes
        var high: Codes
        comptime if e.low_bits == 4:
            low = line & 15
            high = line & 240 if large else shifted[-4, 15](line)
        else:
            low = shifted[-2 * i, 3](line)
            high = shifted[-2 * i, 3](codes.unsafe_load[width=LINE](LINE))
        comptime if e.extra_bits == 1:
            # Bits i and 4 + i move to the place above the lines' bits.
            comptime above = e.low_bits
            comptime mask = UInt8(1 << above)
            var extra = codes.unsafe_load[width=LINE](extra_at)
            low |= shifted[above - i, mask](extra)
            high |= shifted[above - 4 - i, mask](extra)
        comptime if e.has_table():
            comptime table = e.table
            low = table._dynamic_shuffle(low)
            high = table._dynamic_shuffle(high)
        return (low, high)


@inline(.always)
def _six_bits[i: Int](lines: ImmPointer[UInt8, _]) -> Codes:
    """Returns columns `4 i` to `4 i + 3` of the 16 that three lines hold."""
    comptime if i < 3:
        return lines.unsafe_load[width=LINE](i * LINE) & 63
    else:
        var last = Codes(0)
        comptime for k in range(3):
            comptime mask = UInt8(3 << (2 * k))
            var line = lines.unsafe_load[width=LINE](k * LINE)
            last |= shifted[2 * k - 6, mask](line)
        return last
