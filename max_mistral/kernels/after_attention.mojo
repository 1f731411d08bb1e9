"""The op of what a block does after its attention, threads begun once for all of it."""

import extensibility
from extensibility import InputTensor, InputVariadicTensors, OutputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.math import exp

from .layout import ROWS, Floats
from .phases import Phases
from .stage import Stage, Weight, kind_of


@inline(.always)
def load_row(row: ImmPointer[Float32, _], count: Int) -> Floats:
    """Returns the first `count` numbers, and nothing that is looked at."""
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


@extensibility.register("mistral_after_attention")
struct AfterAttention:
    """The output projection, the residual, and the MLP of a normed copy of it:

        h = x + attended @ o.T
        n = rms_norm(h)
        y = h + (silu(n @ gate.T) * (n @ up.T)) @ down.T
    """

    @staticmethod
    def execute[
        kinds: Int,
        portable: Bool,
        rounded: Int,
        amx: Int,
        target: StaticString,
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        attended: InputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        epsilon: Float32,
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        weights: InputVariadicTensors[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, hidden_size]`.

        Parameters:
            kinds: A byte for each weight, as `Stage` takes it.
            portable: As `Stage` takes it.
            rounded: A bit for each weight: as `Stage` takes it.
            amx: A bit for each weight: as `Stage` takes it.
            target: Where the op runs, a CPU.

        Args:
            y: The block's output.
            x: The block's input, `[tokens, hidden_size]`.
            attended: Of all heads, `[tokens, heads * head_dim]`.
            norm: RMSNorm's weight, `[hidden_size]`.
            epsilon: RMSNorm's epsilon.
            rows: How many rows each weight has.
            weights: Those of o, gate, up and down, of which gate and up have the same
                class: dense or not, rounded or not. See `layout.mojo`.
            ctx: What runs the threads.
        """
        comptime assert weights.size == 4, "o, gate, up and down"
        var tokens = x.dim_size(0)
        var hidden = x.dim_size(1)
        var wide = Int(rows.unsafe_ptr().unsafe_load(1))
        var threads = parallelism_level(None)
        var pointers = List[Weight]()
        comptime for i in range(4):
            pointers.append(
                weights[i].unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
            )
        var project = Stage[
            kind_of(kinds, 0), 1, portable, Bool(rounded & 1), Bool(amx & 1)
        ](
            tokens,
            attended.dim_size(1),
            rows.unsafe_ptr(),
            [pointers[0]],
            threads,
        )
        var widen = Stage[
            (kinds >> 8) & 0xFFFF,
            2,
            portable,
            Bool(rounded & 2),
            Bool(amx & 2),
        ](
            tokens,
            hidden,
            rows.unsafe_ptr().unsafe_offset(1),
            [pointers[1], pointers[2]],
            threads,
        )
        var narrow = Stage[
            kind_of(kinds, 3), 1, portable, Bool(rounded & 8), Bool(amx & 8)
        ](
            tokens,
            wide,
            rows.unsafe_ptr().unsafe_offset(3),
            [pointers[3]],
            threads,
        )
        var between_store = List[Float32](unsafe_uninit_length=tokens * 2 * wide)
        var between = between_store.unsafe_ptr()
        var out = y.unsafe_ptr()
        var residual = x.unsafe_ptr()
        var first = attended.unsafe_ptr()
        var phases = Phases(
            [
                project.to_interleave(),
                len(project.shares),
                widen.to_interleave(),
                len(widen.shares),
                narrow.to_interleave(),
                len(narrow.shares),
            ]
        )

        @inline(.always)
        def load_attended(token: Int, column: Int, count: Int) {imm} -> Floats:
            var at = token * project.columns + column
            return load_row(first.unsafe_offset(at), count)

        @inline(.always)
        def add_to_residual(
            token: Int, column: Int, sums: Floats, count: Int
        ) {imm}:
            var at = token * hidden + column
            var before = load_row(residual.unsafe_offset(at), count)
            store_row(out.unsafe_offset(at), before + sums, count)

        @inline(.always)
        def load_hidden(token: Int, column: Int, count: Int) {imm} -> Floats:
            return load_row(out.unsafe_offset(token * hidden + column), count)

        @inline(.always)
        def keep(token: Int, column: Int, sums: Floats, count: Int) {imm}:
            var at = token * 2 * wide + column
            store_row(between.unsafe_offset(at), sums, count)

        @inline(.always)
        def load_between(token: Int, column: Int, count: Int) {imm} -> Floats:
            var gate = between.unsafe_offset(token * 2 * wide + column)
            var up = gate.unsafe_offset(wide)
            return silu(load_row(gate, count)) * load_row(up, count)

        @inline(.always)
        def add_to_output(
            token: Int, column: Int, sums: Floats, count: Int
        ) {imm}:
            var at = out.unsafe_offset(token * hidden + column)
            store_row(at, load_row(at, count) + sums, count)

        @inline(.always)
        def run(thread: Int) {imm}:
            var weight = norm.unsafe_ptr()
            project.run(phases, 0, load_attended, add_to_residual, weight)
            widen.run[True](
                phases, 2, load_hidden, keep, weight, epsilon
            )
            narrow.run(phases, 4, load_between, add_to_output, weight)

        ctx.enqueue_cpu_range(run, count=min(threads, phases.most_shares()))
        ctx.synchronize()
        _ = phases^
        _ = project^
        _ = widen^
        _ = narrow^
        _ = between_store^
