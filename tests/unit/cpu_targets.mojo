"""Calls the linear layers and attention's parts, so that they are compiled."""

from kernels import kv_cache, softmax, spans, tiles
from kernels.layout import KINDS, Floats


def main() raises:
    var floats = List[Float32](length=4096, fill=0)
    var packed = List[UInt8](length=65536, fill=0)
    var y = List[Float32](length=4096, fill=0)
    var out = y.unsafe_ptr()

    @inline(.always)
    def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
        out.unsafe_store(column, sums)

    comptime for kind in range(KINDS):
        comptime for portable in [False, True]:
            comptime rounded = tiles.rounds[kind, portable]()
            var matrix = tiles.Matrix(65536, 16, 0)
            tiles.interleave_rows[kind, portable, rounded](
                packed.unsafe_ptr(), floats.unsafe_ptr(), 1, 256
            )
            tiles.multiply_panels[kind, portable, rounded](
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
    comptime for head_dim in [64, 128, 20]:
        var pages = List[UInt32](length=1, fill=0)
        var one = kv_cache.Cache(
            ImmPointer(floats.unsafe_ptr()),
            ImmPointer(pages.unsafe_ptr()),
            0,
            1,
            0,
            1,
            head_dim,
        )
        softmax.clear[head_dim](y.unsafe_ptr(), 1)
        spans.span[head_dim](
            y.unsafe_ptr(), floats.unsafe_ptr(), one, 1, 0, 1, 1, 0, 1, 0, 1.0
        )
        softmax.merge[head_dim](y.unsafe_ptr(), floats.unsafe_ptr(), 1)
        softmax.finish[head_dim](y.unsafe_ptr(), floats.unsafe_ptr(), 1)
    print(y[0])
