"""Codes, scales and minima of quantized weights, as `layout.mojo` lays them out."""

from std.memory import bitcast

from .layout import (
    ROWS,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_0,
    Floats,
    block_bytes,
    block_columns,
)

comptime Codes = SIMD[DType.uint8, 4 * ROWS]


@inline(.always)
def _codes_at[
    kind: Int
](block: ImmPointer[UInt8, _], part: Int) -> ImmPointer[UInt8, block.origin]:
    """Where the codes of the 32 columns `part` of a block begin."""
    comptime if kind == Q8_0 or kind == Q4_0:
        return block.unsafe_offset(32)
    elif kind == Q4_1:
        return block.unsafe_offset(64)
    elif kind == Q6_K:
        return block.unsafe_offset(32 + 256 + part * (256 + 128))
    elif kind == Q5_K:
        return block.unsafe_offset(64 + 192 + part * (256 + 64))
    else:
        return block.unsafe_offset(64 + 192 + part * 256)


@inline(.always)
def _bits[to: Int, mask: UInt8](x: Codes) -> Codes:
    """Moves each byte's bits up by `to` (down if negative), then masks them.

    x86 has no shifts of bytes; the mask removes what a neighbour shifted in.
    """
    var words = bitcast[.uint32, ROWS](x)
    comptime if to >= 0:
        words = words << UInt32(to)
    else:
        words = words >> UInt32(-to)
    return bitcast[.uint8, 4 * ROWS](words) & mask


@inline(.always)
def quads[
    kind: Int, i: Int
](block: ImmPointer[UInt8, _], part: Int) -> Tuple[Codes, Codes]:
    """Columns `4 i ... 4 i + 3` and `16 + 4 i ...` of the 32 of `part`."""
    var codes = _codes_at[kind](block, part)
    comptime if kind == Q8_0:
        return (
            codes.unsafe_load[width=4 * ROWS](i * 64),
            codes.unsafe_load[width=4 * ROWS]((4 + i) * 64),
        )
    else:
        var line = codes.unsafe_load[width=4 * ROWS](i * 64)
        var low = line & 15
        var high = _bits[-4, 15](line)
        comptime if kind == Q5_K:
            var fifth = codes.unsafe_load[width=4 * ROWS](256)
            low |= _bits[4 - i, 16](fifth)
            high |= _bits[-i, 16](fifth)
        elif kind == Q6_K:
            var first = codes.unsafe_load[width=4 * ROWS](256)
            var second = codes.unsafe_load[width=4 * ROWS](256 + 64)
            low |= _bits[4 - 2 * i, 48](first)
            high |= _bits[4 - 2 * i, 48](second)
        return (low, high)


@inline(.always)
def _six_bits[
    high: Int
](block: ImmPointer[UInt8, _], part: Int) -> Floats:
    """Q4_K's and Q5_K's scales (`high` 0) or minima (1) of the 32 columns `part`."""
    var low = block.unsafe_load[width=ROWS](64 + part * ROWS).cast[.uint32]()
    var upper = (
        block.unsafe_offset(64 + 128)
        .unsafe_bitcast[UInt32]()
        .unsafe_load[width=ROWS]()
    ) >> UInt32(4 * part)
    comptime if high == 0:
        return ((low & 15) | (upper & 3) << 4).cast[.float32]()
    else:
        return ((low >> 4) | (upper & 12) << 2).cast[.float32]()


@inline(.always)
def scales[
    kind: Int
](block: ImmPointer[UInt8, _], part: Int, half: Int) -> Floats:
    """The scales of 16 rows for the 32 columns `part` (Q6_K: 16, `half`)."""
    var d = (
        block.unsafe_bitcast[Float16]()
        .unsafe_load[width=ROWS]()
        .cast[.float32]()
    )
    comptime if kind == Q4_K or kind == Q5_K:
        return d * _six_bits[0](block, part)
    elif kind == Q6_K:
        return (
            d
            * block.unsafe_offset(32)
            .unsafe_bitcast[Int8]()
            .unsafe_load[width=ROWS]((2 * part + half) * ROWS)
            .cast[.float32]()
        )
    else:
        return d


@inline(.always)
def minima[
    kind: Int
](block: ImmPointer[UInt8, _], part: Int, scale: Floats) -> Floats:
    """What is subtracted from `scale * code`."""
    comptime if kind == Q8_0:
        return scale * 128
    elif kind == Q4_0:
        return scale * 8
    elif kind == Q6_K:
        return scale * 32
    elif kind == Q4_1:
        return -(
            block.unsafe_bitcast[Float16]()
            .unsafe_load[width=ROWS](ROWS)
            .cast[.float32]()
        )
    else:
        return (
            block.unsafe_bitcast[Float16]()
            .unsafe_load[width=ROWS](ROWS)
            .cast[.float32]()
        ) * _six_bits[1](block, part)


def quantized_weight[
    kind: Int
](panel: ImmPointer[UInt8, _], row: Int, column: Int) -> Float32:
    """Returns one weight of a panel."""
    var block = panel.unsafe_offset(
        column // block_columns[kind]() * block_bytes[kind]()
    )
    var part = column % block_columns[kind]() // 32
    var within = column % 32
    var code: UInt8 = 0
    comptime for i in range(4):
        if within % 16 // 4 == i:
            var pair = quads[kind, i](block, part)
            code = (pair[1] if within >= 16 else pair[0])[row * 4 + within % 4]
    var scale = scales[kind](block, part, within // 16)
    var minimum = minima[kind](block, part, scale)
    return scale[row] * code.cast[.float32]() - minimum[row]
