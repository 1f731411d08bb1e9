"""Dot products of codes and of activations in int8, with what the CPU has for them.

  x86, AVX512-VNNI, AVX-VNNI   four products of uint8 and int8, added to an int32
  x86, AVX2                    two of them, added in int16 as long as they fit
  Arm, dot product             four products of int8 and int8, added to an int32

The sums are exact, so all of them give the same. The last two cannot multiply codes
above 127: those stand for int8 weights, as they do in all such encodings.
"""

from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from .activations import LESS_SUMS
from .codes import Codes, quads
from .encodings import encoding
from .layout import LINE, PART, ROWS

comptime Sums = SIMD[DType.int32, ROWS]
comptime PairSums = SIMD[DType.int16, 2 * ROWS]
"""Two sums of each row: the instruction adds products in pairs."""

comptime NO_DOTS = 0
comptime VNNI_512 = 1
comptime VNNI_256 = 2
comptime AVX2 = 3
comptime ARM = 4


def _dots() -> Int:
    """Which of them this CPU has."""
    comptime if CompilationTarget._has_feature["avx512vnni"]():
        return VNNI_512
    elif CompilationTarget._has_feature["avxvnni"]():
        return VNNI_256
    elif CompilationTarget._has_feature["avx2"]():
        return AVX2
    elif CompilationTarget._has_feature["dotprod"]():
        return ARM
    else:
        return NO_DOTS


comptime HAS = _dots()


def signs_codes[kind: Int]() -> Bool:
    """Whether `dots` takes codes less 128, which are the weights over their scale.
    """
    comptime e = encoding[kind]()
    comptime less = HAS == AVX2 or HAS == ARM
    comptime signs = less and e.largest_code() > 127
    comptime assert not signs or e.bias == 128, "a code is no int8 plus 128"
    return signs


def which_sum[kind: Int, half: Int]() -> Int:
    """Which of a part's three sums is that of the columns that share a scale."""
    return 2 if encoding[kind]().scale_columns == PART else half


@inline(.always)
def _less_bias[
    kind: Int, MR: Int, half: Int
](x: ImmPointer[Int32, _], m: Int) -> Sums:
    """Less `bias * sum(x)` of a row; 0 if codes have no bias.

    Args:
        x: The rows' part, from `activations.interleave_rows`.
        m: Which of its `MR` rows.
    """
    comptime e = encoding[kind]()
    comptime if e.has_minima or signs_codes[kind]():
        return 0
    else:
        comptime at = LESS_SUMS + which_sum[kind, half]()
        return Sums(x.unsafe_load(at * MR + m)) * Int32(e.bias)


@inline(.always)
def dots[
    kind: Int, MR: Int, half: Int
](x: ImmPointer[Int32, _], w: ImmPointer[UInt8, _], part: Int) -> Array[Sums, MR]:
    """`sum((code - bias) * x)` over the columns of a part that share a scale.

    All of them, or the 16 of `half`. One sum for a row, so that a tile's sums stay in
    registers; two if there is but one row, for it would wait for itself.

    Args:
        x: The rows' part, from `activations.interleave_rows`.
        w: The panel's block.
        part: Which of the block's.

    Returns:
        `[MR]` vectors of 16 output rows.
    """
    comptime e = encoding[kind]()
    comptime both = e.scale_columns == PART
    comptime lines = 8 if both else 4
    comptime chains = 2 if both and MR == 1 else 1
    # Upper codes have a sum of their own, so that it is shifted, not each of them. At
    # 16 times their size they fit a uint8, which only these multiply.
    comptime unsigned = HAS == VNNI_512 or HAS == VNNI_256
    comptime large = chains == 2 and unsigned and e.has_nibbles()
    comptime fit = _lines_in_int16[kind]()
    var sums = Array[Sums, chains * MR](fill=0)
    var pairs = Array[PairSums, MR](fill=0)
    comptime for i in range(4):
        # Columns 4 i to 4 i + 3 of each 16.
        var pair = quads[kind, i, large=large](w, part)
        comptime for side in range(2):
            comptime if both or side == half:
                comptime line = 2 * i + side if both else i
                var codes = pair[side]
                comptime if signs_codes[kind]():
                    codes ^= 128
                comptime for m in range(MR):
                    comptime to = chains * m + line % chains
                    var four = x.unsafe_load((4 * side + i) * MR + m)
                    comptime if HAS == AVX2:
                        pairs[m] += _multiply[signs_codes[kind]()](codes, four)
                        comptime if line % fit == fit - 1 or line == lines - 1:
                            sums[to] += _widened(pairs[m])
                            pairs[m] = 0
                    else:
                        sums[to] = _dot4(sums[to], codes, four)
    comptime if large:
        sums[1] >>= 4
    comptime if chains == 2:
        sums[0] += sums[1]
    var found = Array[Sums, MR](fill=0)
    comptime for m in range(MR):
        # Added last: few sums would wait for it if they began with it.
        found[m] = sums[chains * m] + _less_bias[kind, MR, half](x, m)
    return found^


@inline(.always)
def unpacked_dots[
    kind: Int, MR: Int, turn: Int, half: Int
](
    x: ImmPointer[Int32, _], codes: ImmPointer[UInt8, _], begin: Int
) -> Array[Sums, turn]:
    """`dots` of some of a part's rows and of codes that `quads` has unpacked.

    The loop over lines is unrolled whole only where registers hold all codes beside
    the sums, for then the compiler keeps them there.

    Args:
        x: The rows' part.
        codes: `[8][16][4]`, less 128 if `signs_codes`.
        begin: The first of `turn` rows.

    Returns:
        `[turn]` vectors of 16 output rows.
    """
    comptime lines = encoding[kind]().scale_columns // 4
    comptime first = half * lines
    comptime fit = min(lines, _lines_in_int16[kind]())
    comptime assert lines % fit == 0, "the last lines are fewer"
    var sums = Array[Sums, turn](fill=0)
    comptime for k in range(turn):
        sums[k] = _less_bias[kind, MR, half](x, begin + k)
    comptime if HAS == AVX2 and fit == lines:
        var pairs = Array[PairSums, turn](fill=0)
        for line in range(first, first + lines):
            var line_codes = codes.unsafe_load[width=LINE](line * LINE)
            comptime for k in range(turn):
                pairs[k] += _multiply[signs_codes[kind]()](
                    line_codes, x.unsafe_load(line * MR + begin + k)
                )
        comptime for k in range(turn):
            sums[k] += _widened(pairs[k])
    elif HAS == AVX2:
        for at in range(first, first + lines, fit):
            comptime for k in range(turn):
                var pairs = PairSums(0)
                comptime for i in range(fit):
                    pairs += _multiply[signs_codes[kind]()](
                        codes.unsafe_load[width=LINE]((at + i) * LINE),
                        x.unsafe_load((at + i) * MR + begin + k),
                    )
                sums[k] += _widened(pairs)
    else:
        comptime unrolled = lines if HAS == VNNI_512 else 1
        for at in range(first, first + lines, unrolled):
            comptime for i in range(unrolled):
                var line_codes = codes.unsafe_load[width=LINE]((at + i) * LINE)
                comptime for k in range(turn):
                    sums[k] = _dot4(
                        sums[k], line_codes, x.unsafe_load((at + i) * MR + begin + k)
                    )
    return sums^


def _lines_in_int16[kind: Int]() -> Int:
    """Lines whose products fit into an int16; one if the codes are signed."""
    comptime e = encoding[kind]()
    return max(1, 32767 // (2 * 127 * e.largest_code()))


@inline(.always)
def _dot4(sums: Sums, codes: Codes, x: Int32) -> Sums:
    """Adds to each lane the dot product of four codes and four int8s."""
    comptime if HAS == VNNI_512:
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Sums](
            sums, codes, bitcast[.uint8, LINE](Sums(x))
        )
    elif HAS == VNNI_256:
        return _by_pieces["llvm.x86.avx512.vpdpbusd.256", 8](sums, codes, x)
    else:
        comptime assert HAS == ARM, "this CPU has no dot products"
        return _by_pieces["llvm.aarch64.neon.sdot.v4i32.v16i8", 4](sums, codes, x)


@inline(.always)
def _by_pieces[
    name: StaticString, width: Int
](sums: Sums, codes: Codes, x: Int32) -> Sums:
    """`_dot4` by an instruction of `width` rows."""
    var xs = bitcast[.uint8, 4 * width](SIMD[.int32, width](x))
    var found = sums
    comptime for at in range(0, ROWS, width):
        var piece = llvm_intrinsic[name, SIMD[DType.int32, width]](
            sums.slice[width, offset=at](),
            codes.slice[4 * width, offset = 4 * at](),
            xs,
        )
        found = found.insert[offset=at](piece)
    return found


@inline(.always)
def _multiply[signed: Bool](codes: Codes, x: Int32) -> PairSums:
    """The products of two codes and two int8s, added, twice in each row."""
    var xs = bitcast[.int8, 32](SIMD[.int32, 8](x))
    var found = PairSums(0)
    comptime for at in range(2):
        var piece = codes.slice[32, offset = 32 * at]()
        var factors = xs
        comptime if signed:
            var weights = bitcast[.int8, 32](piece)
            piece = bitcast[.uint8, 32](abs(weights))
            factors = llvm_intrinsic[
                "llvm.x86.avx2.psign.b", SIMD[DType.int8, 32]
            ](xs, weights)
        found = found.insert[offset = 16 * at](
            llvm_intrinsic[
                "llvm.x86.avx2.pmadd.ub.sw", SIMD[DType.int16, 16]
            ](piece, factors)
        )
    return found


@inline(.always)
def _widened(pairs: PairSums) -> Sums:
    """The two sums of each row, added."""
    var found = Sums(0)
    comptime for at in range(2):
        found = found.insert[offset = 8 * at](
            llvm_intrinsic["llvm.x86.avx2.pmadd.wd", SIMD[DType.int32, 8]](
                pairs.slice[16, offset = 16 * at](), SIMD[DType.int16, 16](1)
            )
        )
    return found
