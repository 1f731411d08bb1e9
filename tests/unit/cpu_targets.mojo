"""Calls the linear layers and attention's parts, so that they are compiled."""

from kernels import attention, cache, ops, states
from kernels.layout import Q6_K
from max.gpu.host import DeviceContext


def main() raises:
    var ctx = DeviceContext(api="cpu")
    var floats = List[Float32](length=4096, fill=0)
    var packed = List[UInt8](length=65536, fill=0)
    var y = List[Float32](length=4096, fill=0)
    comptime for kind in range(Q6_K + 1):
        comptime for portable in [False, True]:
            ops.linear[kind, portable](
                y.unsafe_ptr(),
                floats.unsafe_ptr(),
                packed.unsafe_ptr(),
                1,
                256,
                16,
                ctx,
            )
    comptime for head_dim in [64, 128, 20]:
        var pages = List[UInt32](length=1, fill=0)
        var one = cache.Cache(
            ImmPointer(floats.unsafe_ptr()),
            ImmPointer(pages.unsafe_ptr()),
            0,
            1,
            0,
            1,
            head_dim,
        )
        states.clear[head_dim](y.unsafe_ptr(), 1)
        attention.span[head_dim](
            y.unsafe_ptr(), floats.unsafe_ptr(), one, 1, 1, 0, 1, 0, 1.0
        )
        states.merge[head_dim](y.unsafe_ptr(), floats.unsafe_ptr(), 1)
        states.finish[head_dim](y.unsafe_ptr(), floats.unsafe_ptr(), 1)
    print(y[0])
