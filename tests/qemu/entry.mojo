"""The CPU kernels as one C function, which needs only memory of Mojo's runtime."""

from kernels import kv_cache, rotate, softmax, spans, tiles
from kernels.encodings import KINDS, is_dense, panel_bytes
from kernels.layout import ROWS, Floats
from kernels.multiply import Matrix, multiply_panels
from kernels.one_row import write_row
from kernels.rows import SPAN
from std.math import ceildiv

comptime Integers = ImmPointer[Int, ImmutAnyOrigin]
comptime Input = ImmPointer[UInt8, ImmutAnyOrigin]
comptime Output = MutPointer[UInt8, MutAnyOrigin]
# Of `tests/unit/test_attention_kernel.py`.
comptime HEAD_DIMS = [64, 20, 128, 32, 80]


@export
def kernel(
    a: Integers,
    first: Input,
    second: Output,
    third: Input,
    output: Output,
    scratch: Output,
) abi("C"):
    """Runs what `a[0]` says: 0 is a linear layer, 1 an embedding, 2 attention, 3 a
    linear layer with int8 activations, where this CPU has them, 4 and 5 attention
    with a KV cache in bfloat16 and in int8.

    What they take is below. `test_qemu.py` says how large `scratch` is.
    """
    comptime for what, dtype in [
        (2, DType.float32),
        (4, DType.bfloat16),
        (5, DType.int8),
    ]:
        if a.unsafe_load(0) == what:
            comptime for head_dim in HEAD_DIMS:
                if a.unsafe_load(1) == head_dim:
                    _attention[dtype, head_dim](
                        a, first, second, third, output, scratch
                    )
            return
    comptime for kind in range(KINDS):
        if a.unsafe_load(1) == kind:
            # Dense weights are never rounded on these CPUs.
            comptime rounded = tiles.rounds[kind, False]() and not is_dense[
                kind
            ]()
            if a.unsafe_load(0) == 0:
                _linear[kind, False](a, first, second, output, scratch)
            elif a.unsafe_load(0) == 3:
                _linear[kind, rounded](a, first, second, output, scratch)
            else:
                _embedding[kind](a, first, output)


def _linear[
    kind: Int, rounded: Bool
](a: Integers, activations: Input, weight: Input, output: Output, scratch: Output):
    """As `stage.mojo`, in one thread. `a` are 0 or 3, kind, tokens, rows, columns."""
    var tokens = a.unsafe_load(2)
    var rows = a.unsafe_load(3)
    var columns = a.unsafe_load(4)
    var x = activations.unsafe_bitcast[Float32]()
    var y = output.unsafe_bitcast[Float32]()
    comptime dense_weights = is_dense[kind]()
    var x_row = tiles.row_bytes[dense_weights, rounded](columns)

    @inline(.always)
    def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
        for i in range(min(count, ROWS)):
            y.unsafe_store(token * rows + column + i, sums[i])

    tiles.interleave_rows[kind, False, rounded](
        scratch, x, tiles.filled(tokens), columns, 0, columns
    )
    multiply_panels[kind, False, rounded](
        write,
        scratch,
        weight,
        Matrix(panel_bytes[kind](columns), rows, 0),
        0,
        ceildiv(rows, ROWS),
        tokens,
        columns,
        x_row,
    )


def _embedding[kind: Int](a: Integers, weight: Input, output: Output):
    """All rows. `a` are 1, kind, rows, columns."""
    var columns = a.unsafe_load(3)
    var y = output.unsafe_bitcast[Float32]()
    for i in range(a.unsafe_load(2)):
        var panel = weight.unsafe_offset(
            i // ROWS * panel_bytes[kind](columns)
        )
        write_row[kind](panel, columns, i % ROWS, y.unsafe_offset(i * columns))


def _attention[
    dtype: DType, head_dim: Int
](
    a: Integers,
    new: Input,
    blocks: Output,
    pages: Input,
    output: Output,
    scratch: Output,
):
    """As `attend.mojo`, of one request and in one thread. `new` are each token's
    queries, keys and values, its cosines and sines, and its queries' scale.

    `a` are 2, 4 or 5; head_dim, tokens, heads, kv_heads, page_size, window, layer,
    layers, tokens cached before.
    """
    var tokens = a.unsafe_load(2)
    var heads = a.unsafe_load(3)
    var width = a.unsafe_load(4) * head_dim
    var room = a.unsafe_load(4) * kv_cache.room[dtype](head_dim)
    var page_size = a.unsafe_load(5)
    var window = a.unsafe_load(6)
    var layers = a.unsafe_load(8)
    var inputs = new.unsafe_bitcast[Float32]()
    var q_width = heads * head_dim
    var qkv_width = q_width + 2 * width
    var row = qkv_width + head_dim + 1
    var cache = kv_cache.Cache(
        blocks.unsafe_bitcast[Scalar[dtype]](),
        pages.unsafe_bitcast[UInt32](),
        2 * layers * page_size * room,
        page_size,
        a.unsafe_load(7),
        layers,
        width,
        room,
    )
    comptime size = softmax.state_size(head_dim)
    var y = output.unsafe_bitcast[Float32]()
    var total = scratch.unsafe_bitcast[Float32]()
    var states = total.unsafe_offset(spans.TILE * heads * size)
    for token in range(tokens):
        var x = inputs.unsafe_offset(token * row)
        rotate.rotate_and_store[head_dim, False](
            y.unsafe_offset(token * q_width),
            blocks.unsafe_bitcast[Scalar[dtype]](),
            cache,
            x,
            x.unsafe_offset(qkv_width),
            heads,
            a.unsafe_load(9) + token,
            x.unsafe_load(row - 1),
        )
    for first in range(0, tokens, spans.TILE):
        var count = min(spans.TILE, tokens - first)
        var at = first * q_width
        var rows = count * heads
        var position = a.unsafe_load(9) + first
        softmax.clear[head_dim](total, rows)
        var begin = max(0, position - window + 1) // SPAN * SPAN
        while begin < position + count:
            spans.span[head_dim, False](
                states,
                y.unsafe_offset(at).unsafe_bitcast[UInt32](),
                cache,
                heads,
                0,
                a.unsafe_load(4),
                count,
                position,
                window,
                begin,
                0.1,
            )
            softmax.merge[head_dim](total, states, rows)
            begin += SPAN
        softmax.finish[head_dim](y.unsafe_offset(at), total, rows)
