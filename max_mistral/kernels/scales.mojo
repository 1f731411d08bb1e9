"""Reads scales and minima of quantized weights out of packed blocks."""

from .codes import Codes, shifted
from .encodings import encoding
from .layout import LINE, PART, ROWS, Floats


struct SubScales[kind: Int]:
    """A block's sub-scales and sub-minima of 6 bits, unpacked to bytes.

    Those of 4 parts take the instructions of one. Other sub-scales are read where
    they are.
    """

    comptime USED = (
        encoding[Self.kind]().sub_scale_bits == 6
        and encoding[Self.kind]().has_minima
    )

    var _lines: Array[Codes, 4 if Self.USED else 1]
    """Sub-scales of parts 0 to 3, of parts 4 to 7, then sub-minima."""

    @inline(.always)
    def __init__(out self, block: ImmPointer[UInt8, _]):
        """Unpacks those of a block."""
        self._lines = Array[Codes, 4 if Self.USED else 1](fill=0)
        comptime if Self.USED:
            comptime at = encoding[Self.kind]().sub_scales_at()
            comptime assert encoding[Self.kind]().parts() == 8, "of 4 parts, twice"
            var upper = block.unsafe_load[width=LINE](at + 2 * LINE)
            comptime for k in range(2):
                var lower = block.unsafe_load[width=LINE](at + k * LINE)
                self._lines[k] = lower & 15 | shifted[4 - 4 * k, 48](upper)
                self._lines[2 + k] = shifted[-4, 15](lower) | shifted[
                    2 - 4 * k, 48
                ](upper)

    @inline(.always)
    def scales(self, part: Int) -> Floats:
        """Returns the sub-scales of a part."""
        return self._numbers(part)

    @inline(.always)
    def minima(self, part: Int) -> Floats:
        """Returns the sub-minima of a part."""
        return self._numbers(8 + part)

    @inline(.always)
    def _numbers(self, place: Int) -> Floats:
        comptime assert Self.USED, "this kind has none"
        return (
            self._lines.unsafe_ptr()
            .unsafe_bitcast[UInt8]()
            .unsafe_load[width=ROWS](place * ROWS)
            .cast[.float32]()
        )


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
def _four_bits[
    kind: Int
](block: ImmPointer[UInt8, _], s: Int) -> SIMD[DType.uint8, ROWS]:
    """Reads the 4-bit sub-scales of index `s`, and above them the sub-minima."""
    comptime sub_scales_at = encoding[kind]().sub_scales_at()
    return block.unsafe_load[width=ROWS](sub_scales_at + s * ROWS)


@inline(.always)
def scales[
    kind: Int
](
    block: ImmPointer[UInt8, _],
    sub_scales: SubScales[kind],
    part: Int,
    half: Int,
) -> Floats:
    """Returns the scales of 16 rows in a part.

    Args:
        block: The panel's block.
        sub_scales: Of that block.
        part: Which of the block's.
        half: For which 16 columns of the part, where those have their own.
    """
    comptime e = encoding[kind]()
    comptime sub_scales_at = e.sub_scales_at()
    var d = _float16s(block, 0)
    comptime if SubScales[kind].USED:
        return d * sub_scales.scales(part)
    elif e.sub_scale_bits == 6:
        comptime each = PART // e.scale_columns
        var numbers = _lone_six_bits[kind](
            block, each * part + (half if each == 2 else 0)
        )
        comptime if e.unit != 1:
            numbers *= e.unit
        return d * numbers
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
](
    block: ImmPointer[UInt8, _],
    sub_scales: SubScales[kind],
    part: Int,
    half: Int,
    scale: Floats,
) -> Floats:
    """Returns what is subtracted from `scale * code`, where `scale` is what
    `scales` says.
    """
    comptime e = encoding[kind]()
    comptime minima_at = e.minima_at()
    comptime if not e.has_minima:
        return scale * Float32(e.bias)
    elif SubScales[kind].USED:
        return _float16s(block, minima_at) * sub_scales.minima(part)
    elif e.sub_scale_bits == 4:
        var both = _four_bits[kind](block, 2 * part + half)
        return _float16s(block, minima_at) * (both >> 4).cast[.float32]()
    else:
        # GGUF adds this one.
        return -_float16s(block, minima_at)
