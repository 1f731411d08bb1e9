"""Calls the linear layers, attention's parts and what waits, to have them compiled."""

from kernels import kv_cache, rotate, softmax, spans, tiles
from kernels.encodings import KINDS
from kernels.layout import Floats
from kernels.multiply import Matrix, multiply_panels
from kernels.phases import Phases


def main() raises:
    var floats = List[Float32](length=4096, fill=0)
    var packed = List[UInt8](length=65536, fill=0)
    var y = List[Float32](length=4096, fill=0)
    var out = y.unsafe_ptr()

    @inline(.always)
    def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
        out.unsafe_store(column, sums)

    @inline(.always)
    def multiply[kind: Int, portable: Bool, rounded: Bool, amx: Bool]() {mut}:
        var matrix = Matrix(65536, 16, 0)
        tiles.interleave_rows[kind, portable, rounded, amx](
            packed.unsafe_ptr(), floats.unsafe_ptr(), 1, 256, 0, 256
        )
        multiply_panels[kind, portable, rounded, amx](
            write,
            packed.unsafe_ptr(),
            packed.unsafe_ptr(),
            matrix,
            0,
            1,
            1,
            256,
            1024,
        )

    comptime for kind in range(KINDS):
        comptime for portable in [False, True]:
            comptime rounded = tiles.rounds[kind, portable]()
            multiply[kind, portable, rounded, False]()
            comptime if not portable and tiles.takes_amx[kind, rounded]():
                multiply[kind, portable, rounded, True]()
    comptime for head_dim in [128, 20]:
        attend[DType.float32, head_dim, False](y.unsafe_ptr())
        attend[DType.bfloat16, head_dim, False](y.unsafe_ptr())
        attend[DType.bfloat16, head_dim, True](y.unsafe_ptr())
        attend[DType.int8, head_dim, False](y.unsafe_ptr())
        attend[DType.int8, head_dim, True](y.unsafe_ptr())
    var phases = Phases([1, 1])

    @inline(.always)
    def work(share: Int) {imm}:
        out.unsafe_store(share, 1)

    @inline(.always)
    def fetch(share: Int, turn: Int) {imm}:
        pass

    phases.run(0, 0, work, fetch)
    phases.run(1, 0, work, fetch)
    print(y[0])


def attend[
    dtype: DType, head_dim: Int, rounded: Bool
](y: MutPointer[Float32, _]):
    """One token and one head, in a page of 16 keys."""
    comptime room = kv_cache.room[dtype](head_dim)
    var blocks = List[Scalar[dtype]](length=2 * 16 * room, fill=0)
    var stored = List[Scalar[dtype]](length=2 * 16 * room, fill=0)
    var token = List[Float32](length=4 * head_dim, fill=0)
    var query = List[Float32](length=2 * head_dim, fill=0)
    var pages = List[UInt32](length=1, fill=0)
    var one = kv_cache.Cache(
        ImmPointer(blocks.unsafe_ptr()),
        ImmPointer(pages.unsafe_ptr()),
        0,
        16,
        0,
        1,
        head_dim,
        room,
    )
    var x = ImmPointer(token.unsafe_ptr())
    var q = query.unsafe_ptr()
    rotate.rotate_and_store[head_dim, rounded](
        q, stored.unsafe_ptr(), one, x, x, 1, 0, 1.0
    )
    spans.span[head_dim, rounded](
        y, q.unsafe_bitcast[UInt32](), one, 1, 0, 1, 1, 0, 1, 0, 1.0
    )
    softmax.clear[head_dim](q, 1)
    softmax.merge[head_dim](q, y, 1)
    softmax.finish[head_dim](y, q, 1)
    _ = blocks^
    _ = stored^
    _ = token^
    _ = query^
    _ = pages^
