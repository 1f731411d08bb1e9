"""The op of linear layers, and how threads share its work."""

import extensibility
from extensibility import InputTensor, InputVariadicTensors
from extensibility import _FusedInputTensor as FusedInputTensor
from extensibility import _FusedOutputTensor as FusedOutputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.atomic import Atomic
from std.math import ceildiv
from std.utils import IndexList

from . import amx_dense
from .layout import KINDS, LINE, ROWS, Floats, is_dense, panel_bytes
from .norm import normalize
from .tiles import (
    Matrix,
    interleave_rows,
    max_panels,
    max_rows,
    multiply_panels,
    one_row_panels,
    rounds,
    row_bytes,
    takes_amx,
)

# Bytes of weights that a thread takes at a time. Large shares are read in order;
# the last ones are small, so that no thread waits long for another.
comptime LARGEST_SHARE = 256 * 1024
comptime SMALLEST_SHARE = 32 * 1024


def _kind(kinds: Int, i: Int) -> Int:
    """The kind of weight `i`; `kinds` holds a byte for each."""
    comptime assert KINDS <= 256, "a byte is too small"
    return (kinds >> (8 * i)) & 255


@fieldwise_init
struct Share(ImplicitlyCopyable):
    """Panels `begin` to `end - 1` of one of the weights."""

    var matrix: Int
    """Which weight."""
    var begin: Int
    var end: Int


def _shares(matrices: List[Matrix], unit: Int, threads: Int) -> List[Share]:
    """Cuts the weights into multiples of `unit` panels, smaller towards the end.
    """
    var left = 0
    for matrix in matrices:
        left += ceildiv(matrix.rows, ROWS) * matrix.panel
    var shares = List[Share]()
    for i in range(len(matrices)):
        var panel = matrices[i].panel
        var panels = ceildiv(matrices[i].rows, ROWS)
        var begin = 0
        while begin < panels:
            var size = min(LARGEST_SHARE, left // (2 * threads))
            size = max(SMALLEST_SHARE, size)
            var count = max(1, size // (panel * unit)) * unit
            var end = min(panels, begin + count)
            shares.append(Share(i, begin, end))
            left -= (end - begin) * panel
            begin = end
    return shares^


@extensibility.register("mistral_linear")
struct Linear:
    """`y = x @ w.T` for one or more packed weights; their outputs are concatenated.
    """

    @staticmethod
    def execute[
        kinds: Int,
        portable: Bool,
        rounded: Bool,
        amx: Bool,
        normed: Bool,
        target: StaticString,
    ](
        y: FusedOutputTensor[dtype=DType.float32, rank=2, ...],
        x: FusedInputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        epsilon: Float32,
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        weights: InputVariadicTensors[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, sum(rows)]`, from `x`, `[tokens, columns]`.

        Parameters:
            kinds: A byte per weight, the first lowest: its index in
                `layout.ENCODINGS`. Either all weights are dense or none is.
            portable: Whether to do without AVX-512.
            rounded: Whether to round the activations: to bfloat16 if the weights
                are bfloat16, which all are or none is; to int8 if they are
                quantized and the CPU has dot products of int8 (`dots.mojo`).
            amx: Whether to multiply them by AMX, if they are bfloat16 and the CPU has
                it. Columns are a multiple of `amx_dense.STEP` then.
            normed: Whether to apply RMSNorm to `x` first.
            target: Where the op runs, a CPU.

        Args:
            y: The outputs of the weights, concatenated.
            x: The activations.
            norm: RMSNorm's weight, `[columns]`, if `normed`.
            epsilon: RMSNorm's epsilon, if `normed`.
            rows: How many rows each weight has.
            weights: `[panels, panel_bytes]` each, as `layout.mojo` describes.
            ctx: What runs the threads.
        """
        comptime count = weights.size
        comptime assert count < 8, "an integer has seven bytes beside its sign"
        comptime dense_weights = is_dense[_kind(kinds, 0)]()
        comptime rounds_x = rounded and rounds[_kind(kinds, 0), portable]()
        comptime by_amx = amx and takes_amx[_kind(kinds, 0), rounds_x]()
        comptime max_mr = max_rows[_kind(kinds, 0), portable, rounds_x, by_amx]()
        var tokens = x.dim_size(0)
        var columns = x.dim_size(1)
        var x_row = row_bytes[dense_weights, rounds_x](columns)
        comptime if by_amx:
            if columns % amx_dense.STEP:
                raise Error(t"AMX cannot multiply {columns} columns.")
        var store = List[UInt8](unsafe_uninit_length=tokens * x_row + 2 * LINE)
        # A row of AMX's is a line.
        var buffer = store.unsafe_ptr().unsafe_offset(
            -Int(store.unsafe_ptr()) & (LINE - 1)
        )
        var tiles = ceildiv(tokens, max_mr)

        @inline(.always)
        def interleave(tile: Int) {imm}:
            var begin = tile * max_mr
            var end = min(tokens, begin + max_mr)
            var scratch = List[Float32](
                unsafe_uninit_length=(end - begin) * columns
            )
            var floats = scratch.unsafe_ptr()
            for row in range(end - begin):
                var k = 0
                while k + ROWS <= columns:
                    floats.unsafe_store(
                        row * columns + k,
                        x._fused_load[ROWS](IndexList[2](begin + row, k)),
                    )
                    k += ROWS
                while k < columns:
                    floats.unsafe_store(
                        row * columns + k,
                        x._fused_load[1](IndexList[2](begin + row, k)),
                    )
                    k += 1
                comptime if normed:
                    normalize(
                        floats.unsafe_offset(row * columns),
                        norm.unsafe_ptr(),
                        columns,
                        epsilon,
                    )
            interleave_rows[_kind(kinds, 0), portable, rounds_x, by_amx](
                buffer.unsafe_offset(begin * x_row), floats, end - begin, columns
            )
            _ = scratch^

        if tiles <= 2:
            for tile in range(tiles):
                interleave(tile)
        else:
            ctx.enqueue_cpu_range(interleave, count=tiles)
            ctx.synchronize()

        var matrices = List[Matrix]()
        var first = 0
        comptime for i in range(count):
            comptime kind = _kind(kinds, i)
            var n = Int(rows.unsafe_ptr().unsafe_load(i))
            matrices.append(Matrix(panel_bytes[kind](columns), n, first))
            first += n
        comptime fewest = max(
            one_row_panels[_kind(kinds, 0), portable, rounds_x](),
            max_panels[_kind(kinds, 0), portable, rounds_x](),
        )
        var threads = parallelism_level(None)
        var unit = fewest
        comptime if by_amx:
            if tokens > amx_dense.MAX_ROWS:
                # As many as are fast together, but something for each thread.
                var share = first // ROWS // (2 * threads) // fewest * fewest
                unit = max(fewest, min(amx_dense.GROUP, share))
        var shares = _shares(matrices, unit, threads)
        # A thread takes the next share when it is done with one: memory serves
        # some threads faster than others.
        var taken = Atomic[Int64](0)
        var counter = Pointer(to=taken)

        @inline(.always)
        def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
            if count >= ROWS:
                y._fused_store[ROWS](IndexList[2](token, column), sums)
                return
            for i in range(count):
                y._fused_store[1](IndexList[2](token, column + i), sums[i])

        @inline(.always)
        def multiply(thread: Int) {imm}:
            while True:
                var i = Int(counter[].fetch_add(1))
                if i >= len(shares):
                    break
                var share = shares[i]
                comptime for k in range(count):
                    if share.matrix == k:
                        multiply_panels[
                            _kind(kinds, k), portable, rounds_x, by_amx
                        ](
                            write,
                            buffer,
                            weights[k].unsafe_ptr(),
                            matrices[k],
                            share.begin,
                            share.end,
                            tokens,
                            columns,
                            x_row,
                        )

        ctx.enqueue_cpu_range(multiply, count=min(threads, len(shares)))
        ctx.synchronize()
        _ = taken^
        _ = store^
        _ = shares^
        _ = matrices^
