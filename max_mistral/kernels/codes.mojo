"""Reads codes, scales and minima of quantized weights out of packed blocks."""

from std.memory import bitcast

from .encodings import encoding
from .layout import LINE, PART, ROWS, Floats

comptime Codes = SIMD[DType.uint8, LINE]


@inline(.always)
def _shifted[by: Int, mask: UInt8](x: Codes) -> Codes:
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
    kind: Int, i: Int
](block: ImmPointer[UInt8, _], part: Int) -> Tuple[Codes, Codes]:
    """Returns the codes of 16 rows in two groups of four columns of a part.

    Columns `4 i` to `4 i + 3`, and columns `16 + 4 i` to `16 + 4 i + 3`.
    """
    comptime e = encoding[kind]()
    comptime codes_at = e.codes_at()
    comptime part_bytes = e.part_bytes()
    comptime extra_at = e.extra_bits_at()
    var codes = block.unsafe_offset(codes_at + part * part_bytes)
    # All lines of 2 bits have some of these columns' bits.
    comptime first = 0 if e.low_bits == 2 else i * LINE
    var line = codes.unsafe_load[width=LINE](first)
    comptime if e.low_bits == 8:
        return (line, codes.unsafe_load[width=LINE]((4 + i) * LINE))
    else:
        var low: Codes
        var high: Codes
        comptime if e.low_bits == 4:
            low = line & 15
            high = _shifted[-4, 15](line)
        else:
            low = _shifted[-2 * i, 3](line)
            high = _shifted[-2 * i, 3](codes.unsafe_load[width=LINE](LINE))
        comptime if e.extra_bits == 1:
            # Bits i and 4 + i move to the place above the lines' bits.
            comptime above = e.low_bits
            comptime mask = UInt8(1 << above)
            var extra = codes.unsafe_load[width=LINE](extra_at)
            low |= _shifted[above - i, mask](extra)
            high |= _shifted[above - 4 - i, mask](extra)
        elif e.extra_bits == 2:
            var first = codes.unsafe_load[width=LINE](extra_at)
            var second = codes.unsafe_load[width=LINE](extra_at + LINE)
            low |= _shifted[4 - 2 * i, 48](first)
            high |= _shifted[4 - 2 * i, 48](second)
        comptime if e.has_table():
            comptime table = e.table
            low = table._dynamic_shuffle(low)
            high = table._dynamic_shuffle(high)
        return (low, high)


@inline(.always)
def _float16s(block: ImmPointer[UInt8, _], at: Int) -> Floats:
    """Reads one float16 per row."""
    return (
        block.unsafe_offset(at)
        .unsafe_bitcast[Float16]()
        .unsafe_load[width=ROWS]()
        .cast[.float32]()
    )


@inline(.always)
def _lone_six_bits[
    kind: Int
](block: ImmPointer[UInt8, _], s: Int) -> Floats:
    """Reads the 6-bit sub-scales of index `s`, where there are no sub-minima."""
    comptime e = encoding[kind]()
    comptime low_at = e.sub_scales_at()
    comptime upper_at = low_at + e.sub_scales() // 2 * ROWS
    comptime Upper = DType.uint32 if e.sub_scales() == 16 else DType.uint16
    var low = (
        block.unsafe_load[width=ROWS](low_at + s // 2 * ROWS).cast[.uint32]()
    ) >> UInt32(s % 2 * 4)
    var upper = (
        block.unsafe_offset(upper_at)
        .unsafe_bitcast[Scalar[Upper]]()
        .unsafe_load[width=ROWS]()
        .cast[.uint32]()
    ) >> UInt32(2 * s)
    return ((low & 15) | (upper & 3) << 4).cast[.float32]() - 32


@inline(.always)
def _six_bits[
    kind: Int, minima: Bool
](block: ImmPointer[UInt8, _], part: Int) -> Floats:
    """Reads the 6-bit sub-scales of a part, or its sub-minima."""
    comptime e = encoding[kind]()
    comptime low_at = e.sub_scales_at()
    comptime upper_at = low_at + e.parts() * ROWS
    var low = block.unsafe_load[width=ROWS](low_at + part * ROWS).cast[.uint32]()
    var upper = (
        block.unsafe_offset(upper_at)
        .unsafe_bitcast[UInt32]()
        .unsafe_load[width=ROWS]()
    ) >> UInt32(4 * part)
    comptime if minima:
        return ((low >> 4) | (upper & 12) << 2).cast[.float32]()
    else:
        return ((low & 15) | (upper & 3) << 4).cast[.float32]()


@inline(.always)
def _four_bits[
    kind: Int
](block: ImmPointer[UInt8, _], s: Int) -> SIMD[DType.uint8, ROWS]:
    """Reads the 4-bit sub-scales of index `s`, and above them the sub-minima."""
    comptime sub_scales_at = encoding[kind]().sub_scales_at()
    return block.unsafe_load[width=ROWS](sub_scales_at + s * ROWS)


@inline(.always)
def scales[
    kind: Int
](block: ImmPointer[UInt8, _], part: Int, half: Int) -> Floats:
    """Returns the scales of 16 rows in a part.

    `half` says for which 16 columns of the part, where those have their own.
    """
    comptime e = encoding[kind]()
    comptime sub_scales_at = e.sub_scales_at()
    var d = _float16s(block, 0)
    comptime if e.sub_scale_bits == 6 and e.has_minima:
        return d * _six_bits[kind, False](block, part)
    elif e.sub_scale_bits == 6:
        comptime each = PART // e.scale_columns
        var sub_scales = _lone_six_bits[kind](
            block, each * part + (half if each == 2 else 0)
        )
        comptime if e.unit != 1:
            sub_scales *= e.unit
        return d * sub_scales
    elif e.sub_scale_bits == 4:
        var both = _four_bits[kind](block, 2 * part + half)
        return d * (both & 15).cast[.float32]()
    elif e.sub_scale_bits == 8:
        return (
            d
            * block.unsafe_offset(sub_scales_at)
            .unsafe_bitcast[Int8]()
            .unsafe_load[width=ROWS]((2 * part + half) * ROWS)
            .cast[.float32]()
        )
    else:
        return d


@inline(.always)
def minima[
    kind: Int
](block: ImmPointer[UInt8, _], part: Int, half: Int, scale: Floats) -> Floats:
    """Returns what is subtracted from `scale * code`, where `scale` is what
    `scales` says.
    """
    comptime e = encoding[kind]()
    comptime minima_at = e.minima_at()
    comptime if not e.has_minima:
        return scale * Float32(e.bias)
    elif e.sub_scale_bits == 6:
        return _float16s(block, minima_at) * _six_bits[kind, True](block, part)
    elif e.sub_scale_bits == 4:
        var both = _four_bits[kind](block, 2 * part + half)
        return _float16s(block, minima_at) * (both >> 4).cast[.float32]()
    else:
        # GGUF adds this one.
        return -_float16s(block, minima_at)


def quantized_weight[
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
    var scale = scales[kind](block, part, within // 16)
    var minimum = minima[kind](block, part, within // 16, scale)
    return scale[row] * code.cast[.float32]() - minimum[row]
