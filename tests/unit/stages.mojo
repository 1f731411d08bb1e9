"""Interleaves rows of activations as 1, 2, 16 and 64 threads cut the work, and prints
whether all came to the same bytes. Multiplies them, and raises where that writes other
rows than theirs."""

from kernels.encodings import panel_bytes
from kernels.layout import ROWS, Floats
from kernels.stage import Stage, Weight
from kernels.tiles import filled

# In `encodings.ENCODINGS`.
comptime F32, BF16, Q8_0, Q4_K = 0, 1, 3, 6


def interleaved[
    kind: Int, rounded: Bool
](tokens: Int, columns: Int, threads: Int) raises -> List[UInt8]:
    """What all shares together leave of rows that are normed first."""
    var x = List[Float32](length=tokens * columns, fill=0)
    var norm = List[Float32](length=columns, fill=0)
    for i in range(len(x)):
        x[i] = Float32(i * 37 % 101) - 50
    for i in range(columns):
        norm[i] = Float32(i % 7) - 3
    var rows: List[Int64] = [ROWS]
    var weight = List[UInt8](length=panel_bytes[kind](columns), fill=0)
    var pointer = Weight(
        weight.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
    )
    var stage = Stage[kind, 1, False, rounded, False](
        tokens, columns, rows.unsafe_ptr(), [pointer], threads
    )
    var size = filled(tokens) * stage.x_row
    for i in range(size):
        stage.interleaved().unsafe_store(i, 0)

    @inline(.always)
    def load(row: Int, column: Int, count: Int) {imm} -> Floats:
        var found = Floats(0)
        for i in range(min(count, ROWS)):
            found[i] = x[row * columns + column + i]
        return found

    for share in range(stage.to_interleave()):
        stage.interleave[True](load, norm.unsafe_ptr(), 1e-5, share)
    var found = List[UInt8](length=size, fill=0)
    for i in range(size):
        found[i] = stage.interleaved().unsafe_load(i)
    var written = List[Int](length=tokens + 1, fill=0)
    var times = written.unsafe_ptr()

    @inline(.always)
    def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
        times.unsafe_store(token, times.unsafe_load(token) + 1)

    for share in range(len(stage.shares)):
        stage.multiply(write, share)
    for token in range(tokens + 1):
        if written[token] != (1 if token < tokens else 0):
            raise Error(t"Row {token} of {tokens} was written {written[token]} times.")
    _ = weight^
    _ = rows^
    _ = norm^
    return found^


def check[kind: Int, rounded: Bool](tokens: Int, columns: Int) raises:
    var one = interleaved[kind, rounded](tokens, columns, 1)
    for threads in [2, 16, 64]:
        var many = interleaved[kind, rounded](tokens, columns, threads)
        var same = len(one) == len(many)
        for i in range(len(one)):
            same = same and one[i] == many[i]
        print(kind, rounded, tokens, columns, threads, same)


def main() raises:
    for tokens in [1, 3, 10, 11, 40]:
        for columns in [21, 530, 1061, 5633]:
            check[F32, False](tokens, columns)
            check[BF16, False](tokens, columns)
            check[BF16, True](tokens, columns)
        for columns in [32, 544, 5632]:
            check[Q8_0, False](tokens, columns)
            check[Q8_0, True](tokens, columns)
        check[Q4_K, True](tokens, 2048)
