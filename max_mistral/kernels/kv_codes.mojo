"""Keys and values in 8 bits: codes of -127 to 127, with one scale for a head's key and
one for its value.

A key's lanes are mixed first (`mix`): a few of them are much larger than the others,
and would leave those no bits. So are the queries' lanes, which leaves each product of
a query and a key as it is (Ashkboos et al., "QuaRot", https://arxiv.org/abs/2404.00456).

A code is its sign, then 7 bits. Four are in a word; the codes of four words lie as

  [2 halves][4 words][2 codes]

so that both halves of a vector's codes are in the order of its words.
"""

from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget
from std.utils import IndexList

from .numbers import nearest

comptime HAS_VBMI = CompilationTarget._has_feature["avx512vbmi"]()
"""Whether x86's AVX512-VBMI is there, which looks bytes up among 128."""

# Bytes of a scale, float32.
comptime SCALE = 4
comptime LARGEST = 127
comptime Bytes = SIMD[DType.uint8, 64]


def mixed_lanes(head_dim: Int) -> Int:
    """How many lanes are mixed with each other, a power of two."""
    return min(128, head_dim & -head_dim)


@inline(.always)
def mix[head_dim: Int](head: MutPointer[Float32, _], scale: Float32):
    """Multiplies lanes by a Hadamard matrix, so that each has a part of all.

    Twice that, they are what they were, `mixed_lanes` times as large.

    Args:
        head: `[head_dim]`.
        scale: What it is multiplied by.
    """
    comptime count = mixed_lanes(head_dim)
    comptime Mixed = SIMD[DType.float32, count]
    for begin in range(0, head_dim, count):
        var lanes = head.unsafe_load[width=count](begin) * scale
        var left = count
        while left > 1:
            var first, second = lanes.deinterleave()
            lanes = rebind[Mixed]((first + second).join(first - second))
            left //= 2
        head.unsafe_store(begin, lanes)


@inline(.always)
def encode[
    head_dim: Int
](codes: MutPointer[UInt8, _], head: ImmPointer[Float32, _]) -> Float32:
    """Writes a head's codes; returns their scale, NaN if a lane is NaN or infinite."""
    comptime count = mixed_lanes(head_dim)
    var most = SIMD[DType.float32, count](0)
    var nothing = SIMD[DType.float32, count](0)
    for begin in range(0, head_dim, count):
        var lanes = head.unsafe_load[width=count](begin)
        most = max(most, abs(lanes))
        nothing += lanes * 0
    var largest = most.reduce_max() + nothing.reduce_add()
    var inverse = LARGEST / largest if largest > 0 else Float32(0)
    for begin in range(0, head_dim, count):
        var q = nearest[count](head.unsafe_load[width=count](begin), inverse)
        var code = (abs(q) & 0x7F) | ((q >> 24) & 0x80)
        codes.unsafe_store(begin, code.cast[.uint8]())
    return largest / LARGEST


@inline(.always)
def place(code: Int) -> Int:
    """Where a code of a word is, from its first."""
    return code // 2 * 8 + code % 2


@inline(.always)
def word_place(word: Int) -> Int:
    """Where a word's first code is, from the first word's."""
    return word // 4 * 16 + word % 4 * 2


def _halves[width: Int]() -> IndexList[2 * width]:
    """Where pairs of codes are: the first halves of `width` words, then the others."""
    var found = IndexList[2 * width]()
    for i in range(2 * width):
        var word = i % width
        found[i] = word // 4 * 8 + i // width * 4 + word % 4
    return found


@inline(.always)
def floats_of[
    width: Int, //, half: Int
](words: SIMD[DType.uint32, width]) -> Tuple[
    SIMD[DType.float32, width], SIMD[DType.float32, width]
]:
    """Both codes of a half of each word."""
    comptime Floats = SIMD[DType.float32, width]
    var pairs = bitcast[.uint16, 2 * width](words).shuffle[_halves[width]()]()
    var two = pairs.slice[width, offset = half * width]().cast[.uint32]()

    @inline(.always)
    def float_of(code: SIMD[DType.uint32, width]) {imm} -> Floats:
        var size = (code & 0x7F).cast[.float32]()
        return bitcast[.float32, width](
            bitcast[.uint32, width](size) | (code & 0x80) << 24
        )

    return (float_of(two), float_of(two >> 8))


@inline(.always)
def pairs_of[
    width: Int, //, half: Int
](words: SIMD[DType.uint32, width]) -> SIMD[DType.uint32, width]:
    """Both codes of a half of each word, as two bfloat16."""
    comptime if HAS_VBMI and width == 16:
        var codes = bitcast[.uint8, 64](words)
        # A look-up leaves the sign out.
        var low = _look_up[0](codes)
        var high = _look_up[1](codes) | (codes & 0x80)
        return bitcast[.uint32, width](low.shuffle[_interleaved[half]()](high))
    else:
        var first, second = floats_of[half](words)
        return (
            bitcast[.uint32, width](first) >> 16
            | bitcast[.uint32, width](second) & 0xFFFF0000
        )


def _interleaved[half: Int]() -> IndexList[64]:
    """Eight bytes of each 16, and as many of another vector's, in turns."""
    var found = IndexList[64]()
    for i in range(64):
        found[i] = i // 16 * 16 + half * 8 + i % 16 // 2 + i % 2 * 64
    return found


def _table[byte: Int, begin: Int]() -> Bytes:
    """A byte of each of 64 codes as bfloat16, without a sign."""
    var found = Bytes(0)
    for i in range(64):
        var bits = bitcast[.uint32, 1](Float32(begin + i)) >> 16
        found[i] = (bits >> UInt32(8 * byte)).cast[.uint8]()
    return found


@inline(.always)
def _look_up[byte: Int](codes: Bytes) -> Bytes:
    comptime first = _table[byte, 0]()
    comptime second = _table[byte, 64]()
    return llvm_intrinsic["llvm.x86.avx512.vpermi2var.qi.512", Bytes](
        first, codes, second
    )
