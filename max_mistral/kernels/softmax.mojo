"""Softmax in parts: what a row of attention knows after some of its keys.

A state is `[padded(head_dim)]` sums of values, each times the exponential of
its score less the largest; then that largest score and the sum of the
exponentials (Milakov and Gimelshein, "Online normalizer calculation for
softmax"). A state takes `state_size(head_dim)` floats.
"""

from std.math import ceildiv, exp, fma
from std.sys.info import simd_width_of
from std.utils.numerics import neg_inf

comptime W = min(16, max(4, simd_width_of[DType.float32]()))
comptime Lanes = SIMD[DType.float32, W]
comptime Reads = ImmPointer[Float32, _]
comptime Writes = MutPointer[Float32, _]
comptime NONE = neg_inf[DType.float32]()


def padded(head_dim: Int) -> Int:
    """A head's floats, up to a whole number of vectors."""
    return ceildiv(head_dim, W) * W


def state_size(head_dim: Int) -> Int:
    """Lanes of a state."""
    return padded(head_dim) + W


def clear[head_dim: Int](states: Writes, rows: Int):
    """Empties states."""
    comptime size = state_size(head_dim)
    for row in range(rows):
        comptime for i in range(size // W):
            states.unsafe_store(row * size + i * W, Lanes(0))
        states.unsafe_store(row * size + padded(head_dim), NONE)


@inline(.always)
def rescale[head_dim: Int](state: Writes, largest: Float32):
    """Makes `largest` a state's maximum."""
    comptime at = padded(head_dim)
    var before = state.unsafe_load(at)
    if before == largest:
        return
    var factor = exp(before - largest)
    comptime for i in range(at // W):
        var sums = state.unsafe_load[width=W](i * W)
        state.unsafe_store(i * W, sums * factor)
    state.unsafe_store(at, largest)
    state.unsafe_store(at + 1, state.unsafe_load(at + 1) * factor)


def merge[head_dim: Int](into: Writes, other: Reads, rows: Int):
    """Adds a later span's states to as many states."""
    comptime at = padded(head_dim)
    comptime size = state_size(head_dim)
    for row in range(rows):
        var a = into.unsafe_offset(row * size)
        var b = other.unsafe_offset(row * size)
        var theirs = b.unsafe_load(at)
        if theirs == NONE:
            continue
        rescale[head_dim](a, max(a.unsafe_load(at), theirs))
        var factor = exp(theirs - a.unsafe_load(at))
        comptime for i in range(at // W):
            var sums = fma(
                b.unsafe_load[width=W](i * W),
                Lanes(factor),
                a.unsafe_load[width=W](i * W),
            )
            a.unsafe_store(i * W, sums)
        var normalizer = a.unsafe_load(at + 1)
        a.unsafe_store(at + 1, fma(b.unsafe_load(at + 1), factor, normalizer))


def finish[head_dim: Int](y: Writes, states: Reads, rows: Int):
    """Writes the attention's output, `[rows, head_dim]`."""
    comptime size = state_size(head_dim)
    for row in range(rows):
        var state = states.unsafe_offset(row * size)
        var inverse = 1 / state.unsafe_load(padded(head_dim) + 1)
        for i in range(head_dim):
            y.unsafe_store(row * head_dim + i, state.unsafe_load(i) * inverse)
