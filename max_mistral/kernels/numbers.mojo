"""Rows of float32 between the stages of an op."""

from std.math import exp, fma
from std.memory import bitcast

from .layout import ROWS, Floats


@inline(.always)
def load_row(row: ImmPointer[Float32, _], count: Int) -> Floats:
    """Returns the first `count` numbers; the other lanes are zero."""
    if count >= ROWS:
        return row.unsafe_load[width=ROWS](0)
    var found = Floats(0)
    for i in range(count):
        found[i] = row.unsafe_load(i)
    return found


@inline(.always)
def store_row(row: MutPointer[Float32, _], numbers: Floats, count: Int):
    """Stores the first `count` numbers."""
    if count >= ROWS:
        row.unsafe_store(0, numbers)
        return
    for i in range(count):
        row.unsafe_store(i, numbers[i])


@inline(.always)
def silu(x: Floats) -> Floats:
    """The sigmoid linear unit (https://arxiv.org/abs/1702.03118)."""
    return x / (1 + exp(-x))


@inline(.always)
def nearest[
    width: Int
](x: SIMD[DType.float32, width], by: Float32) -> SIMD[DType.int32, width]:
    """The integers nearest to `x * by`, ties to even; those are below 2^22."""
    # Adding 1.5 * 2^23 leaves the integer in the low bits.
    var sum = fma(
        x, SIMD[DType.float32, width](by), SIMD[DType.float32, width](12582912.0)
    )
    return bitcast[.int32, width](sum) - 0x4B400000


@fieldwise_init
struct Numbers(ImplicitlyCopyable):
    """Rows of float32 that an op reads and writes in vectors of 16."""

    var first: MutPointer[Float32, MutUntrackedOrigin]
    var columns: Int

    @inline(.always)
    def at(self, row: Int, column: Int) -> MutPointer[Float32, MutUntrackedOrigin]:
        return self.first.unsafe_offset(row * self.columns + column)
