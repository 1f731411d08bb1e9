"""Words of 32 bits: one float32, two bfloat16 or four codes, and what their products
add up to."""

from std.math import fma
from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from .kv_codes import floats_of, pairs_of

comptime HAS_BF16 = CompilationTarget._has_feature["avx512bf16"]()
"""Whether x86's AVX512-BF16 is there, which takes 16 words."""


@inline(.always)
def even[width: Int](pairs: SIMD[DType.uint32, width]) -> SIMD[DType.float32, width]:
    """The first bfloat16 of each word: the upper half of a float32."""
    return bitcast[.float32, width](pairs << 16)


@inline(.always)
def odd[width: Int](pairs: SIMD[DType.uint32, width]) -> SIMD[DType.float32, width]:
    """The second bfloat16 of each word."""
    return bitcast[.float32, width](pairs & 0xFFFF0000)


@inline(.always)
def dot_pairs[
    native: Bool, width: Int
](
    sums: SIMD[DType.float32, width],
    x: SIMD[DType.uint32, width],
    y: SIMD[DType.uint32, width],
) -> SIMD[DType.float32, width]:
    """Adds both products of each word's bfloat16 numbers.

    Parameters:
        native: Whether to take AVX512-BF16, whose sums are rounded otherwise.
        width: Words of a vector.

    Args:
        sums: What they are added to.
        x: Words.
        y: Words.
    """
    comptime if native and width == 16:
        return llvm_intrinsic[
            "llvm.x86.avx512bf16.dpbf16ps.512", SIMD[DType.float32, width]
        ](
            sums,
            bitcast[.bfloat16, 2 * width](x),
            bitcast[.bfloat16, 2 * width](y),
        )
    else:
        return fma(odd(x), odd(y), fma(even(x), even(y), sums))


@inline(.always)
def add_products[
    width: Int, //, dtype: DType, rounded: Bool
](
    sums: SIMD[DType.float32, width],
    words: SIMD[DType.uint32, width],
    x: ImmPointer[UInt32, _],
    i: Int,
) -> SIMD[DType.float32, width]:
    """Adds the products of words and of as many numbers of a row, the same for each.

    Parameters:
        width: Words of a vector.
        dtype: Of what is in the words.
        rounded: Whether the row is bfloat16; else it is float32.

    Args:
        sums: What they are added to.
        words: One vector.
        x: The row.
        i: Which word of the row it would be, if the row were of `dtype`.
    """
    comptime Floats = SIMD[DType.float32, width]
    comptime if rounded:
        comptime assert dtype != .float32, "rows beside float32 are not rounded"
        comptime Pairs = SIMD[DType.uint32, width]
        comptime if dtype == .bfloat16:
            return dot_pairs[HAS_BF16](sums, words, Pairs(x.unsafe_load(i)))
        else:
            var first = Pairs(x.unsafe_load(2 * i))
            var second = Pairs(x.unsafe_load(2 * i + 1))
            var half = dot_pairs[HAS_BF16](sums, pairs_of[0](words), first)
            return dot_pairs[HAS_BF16](half, pairs_of[1](words), second)
    else:
        var row = x.unsafe_bitcast[Float32]()
        comptime if dtype == .float32:
            var numbers = bitcast[.float32, width](words)
            return fma(numbers, Floats(row.unsafe_load(i)), sums)
        elif dtype == .int8:
            var found = sums
            comptime for half in range(2):
                var first, second = floats_of[half](words)
                var at = 4 * i + 2 * half
                found = fma(first, Floats(row.unsafe_load(at)), found)
                found = fma(second, Floats(row.unsafe_load(at + 1)), found)
            return found
        else:
            var first = fma(even(words), Floats(row.unsafe_load(2 * i)), sums)
            return fma(odd(words), Floats(row.unsafe_load(2 * i + 1)), first)
