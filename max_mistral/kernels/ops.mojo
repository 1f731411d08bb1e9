"""The ops that MAX graphs call, and how their work is shared among threads."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.atomic import Atomic
from std.math import ceildiv
from std.sys.info import CompilationTarget

from . import codes, dense, quantized
from .layout import ROWS, is_dense, panel_bytes


def _has_vnni[portable: Bool]() -> Bool:
    comptime if portable:
        return False
    else:
        return CompilationTarget.has_vnni() and CompilationTarget.has_avx512f()


def _max_rows[portable: Bool]() -> Int:
    """Rows of activations in a tile, as many as the registers hold."""
    comptime if portable:
        return 4
    else:
        return 8 if CompilationTarget.has_avx512f() else 4


def _max_panels[portable: Bool]() -> Int:
    comptime if portable:
        return 1
    else:
        return 2 if CompilationTarget.has_avx512f() else 1


# Bytes of weights that a thread takes at a time.
comptime SHARE = 256 * 1024


@inline(.always)
def _pack[
    kind: Int, vnni: Bool, MR: Int
](dst: MutPointer[UInt8, _], x: ImmPointer[Float32, _], columns: Int):
    comptime if is_dense[kind]():
        dense.pack_rows[MR](dst, x, columns)
    else:
        quantized.pack_rows[vnni, MR](dst, x, columns)


@inline(.always)
def _tile[
    kind: Int, vnni: Bool, MR: Int, NR: Int
](
    y: MutPointer[Float32, _],
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    columns: Int,
    rows: Int,
    n: Int,
):
    """Writes `MR` rows and `NR * 16` columns of `y`, from column `n`."""
    var panel = panel_bytes[kind](columns)
    var acc: Array[SIMD[.float32, ROWS], MR * NR]
    comptime if is_dense[kind]():
        acc = dense.dense_tile[kind, MR, NR](xp, w, columns, panel)
    else:
        acc = quantized.quantized_tile[kind, vnni, MR, NR](
            xp, w, columns, panel
        )
    comptime for m in range(MR):
        comptime for r in range(NR):
            var at = n + r * ROWS
            if at + ROWS <= rows:
                y.unsafe_store(m * rows + at, acc[m * NR + r])
            else:
                for i in range(rows - at):
                    y.unsafe_store(m * rows + at + i, acc[m * NR + r][i])


@inline(.always)
def _panels[
    kind: Int, vnni: Bool, MAX_MR: Int, NR: Int
](
    y: MutPointer[Float32, _],
    xp: ImmPointer[UInt8, _],
    w: ImmPointer[UInt8, _],
    tokens: Int,
    columns: Int,
    rows: Int,
    n: Int,
    x_row: Int,
):
    """All rows of activations by `NR` panels, which stay in the cache."""
    var m = 0
    while m < tokens:
        var yp = y.unsafe_offset(m * rows)
        var x = xp.unsafe_offset(m * x_row)
        var left = tokens - m
        comptime if MAX_MR == 8:
            if left >= 8:
                _tile[kind, vnni, 8, NR](yp, x, w, columns, rows, n)
                m += 8
                continue
        if left >= 4:
            _tile[kind, vnni, 4, NR](yp, x, w, columns, rows, n)
            m += 4
        elif left >= 2:
            _tile[kind, vnni, 2, NR](yp, x, w, columns, rows, n)
            m += 2
        else:
            _tile[kind, vnni, 1, NR](yp, x, w, columns, rows, n)
            m += 1


def linear[
    kind: Int, portable: Bool
](
    y: MutPointer[Float32, _],
    x: ImmPointer[Float32, _],
    w: ImmPointer[UInt8, _],
    tokens: Int,
    columns: Int,
    rows: Int,
    ctx: DeviceContext,
) raises:
    """Computes `y = x @ w.T`: `[tokens, columns]` by `[rows, columns]`."""
    comptime vnni = _has_vnni[portable]()
    comptime max_mr = _max_rows[portable]()
    comptime max_nr = _max_panels[portable]()
    # A token alone waits for memory, which is fastest read from end to end;
    # dense panels take several, for sums that do not wait for one another.
    comptime panels_alone = 2 * max_nr if is_dense[kind]() else 1
    var panel = panel_bytes[kind](columns)
    var panels = ceildiv(rows, ROWS)
    var threads = parallelism_level(None)
    var x_row: Int
    comptime if is_dense[kind]():
        x_row = dense.packed_row_bytes(columns)
    else:
        x_row = quantized.packed_row_bytes[vnni](columns)
    var store = List[UInt8](unsafe_uninit_length=tokens * x_row + 64)
    var buffer = store.unsafe_ptr()
    var tiles = ceildiv(tokens, max_mr)

    @inline(.always)
    def pack(tile: Int) {imm}:
        var m = tile * max_mr
        var end = min(tokens, m + max_mr)
        while m < end:
            var dst = buffer.unsafe_offset(m * x_row)
            var src = x.unsafe_offset(m * columns)
            var left = end - m
            comptime if max_mr == 8:
                if left >= 8:
                    _pack[kind, vnni, 8](dst, src, columns)
                    m += 8
                    continue
            if left >= 4:
                _pack[kind, vnni, 4](dst, src, columns)
                m += 4
            elif left >= 2:
                _pack[kind, vnni, 2](dst, src, columns)
                m += 2
            else:
                _pack[kind, vnni, 1](dst, src, columns)
                m += 1

    if tiles <= 2:
        for tile in range(tiles):
            pack(tile)
    else:
        ctx.enqueue_cpu_range(pack, count=tiles)
        ctx.synchronize()

    # Threads take shares as they come free, for they do not get the same part
    # of the memory's time.
    comptime unit = max(panels_alone, max_nr)
    var share = max(1, SHARE // (panel * unit)) * unit
    share = min(share, ceildiv(ceildiv(panels, threads), unit) * unit)
    var shares = ceildiv(panels, share)
    var taken = Atomic[Int64](0)
    var counter = Pointer(to=taken)

    @inline(.always)
    def multiply(thread: Int) {imm}:
        while True:
            var i = Int(counter[].fetch_add(1))
            if i >= shares:
                break
            var p = i * share
            var end = min(panels, p + share)
            while p < end:
                var wp = w.unsafe_offset(p * panel)
                var n = p * ROWS
                if tokens == 1 and p + panels_alone <= end:
                    _tile[kind, vnni, 1, panels_alone](
                        y, buffer, wp, columns, rows, n
                    )
                    p += panels_alone
                elif p + max_nr <= end:
                    _panels[kind, vnni, max_mr, max_nr](
                        y, buffer, wp, tokens, columns, rows, n, x_row
                    )
                    p += max_nr
                else:
                    _panels[kind, vnni, max_mr, 1](
                        y, buffer, wp, tokens, columns, rows, n, x_row
                    )
                    p += 1

    ctx.enqueue_cpu_range(multiply, count=min(threads, shares))
    ctx.synchronize()
    _ = taken^
    _ = store^


@extensibility.register("mistral_linear")
struct Linear:
    """`y = x @ w.T` for a packed weight."""

    @staticmethod
    def execute[
        kind: Int, portable: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        linear[kind, portable](
            y.unsafe_ptr(),
            x.unsafe_ptr(),
            w.unsafe_ptr(),
            x.dim_size(0),
            x.dim_size(1),
            y.dim_size(1),
            ctx,
        )


@extensibility.register("mistral_embedding")
struct Embedding:
    """`y[i] = w[tokens[i]]` for a packed weight."""

    @staticmethod
    def execute[
        kind: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var columns = y.dim_size(1)
        var panel = panel_bytes[kind](columns)
        var yp = y.unsafe_ptr()
        var tp = tokens.unsafe_ptr()
        var wp = w.unsafe_ptr()

        @inline(.always)
        def gather(i: Int) {imm}:
            var row = Int(tp.unsafe_load(i))
            var p = wp.unsafe_offset(row // ROWS * panel)
            for k in range(columns):
                comptime if is_dense[kind]():
                    yp.unsafe_store(
                        i * columns + k,
                        dense.dense_weight[kind](p, row % ROWS, k),
                    )
                else:
                    yp.unsafe_store(
                        i * columns + k,
                        codes.quantized_weight[kind](p, row % ROWS, k),
                    )

        ctx.enqueue_cpu_range(gather, count=y.dim_size(0))
        ctx.synchronize()
