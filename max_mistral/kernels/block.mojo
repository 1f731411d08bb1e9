"""The op of a whole block, whose threads begin once for all of it."""

import extensibility
from extensibility import InputTensor, InputVariadicTensors, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .attend import Attending
from .layout import Floats
from .numbers import Numbers, load_row, silu, store_row
from .phases import Phases
from .stage import Stage, Weight, kind_of
from .wanted import Wanted


@extensibility.register("mistral_block")
struct Block:
    """A decoder block, whose `attention` is what `Attending` does:

        h = x + attention(rms_norm(x) @ qkv.T) @ o.T
        n = rms_norm(h)
        y = h + (silu(n @ gate.T) * (n @ up.T)) @ down.T
    """

    @staticmethod
    def execute[
        dtype: DType,
        kinds: Int,
        portable: Bool,
        rounded: Int,
        amx: Int,
        head_dim: Int,
        window: Int,
        scaled: Bool,
        rounded_attention: Bool,
        target: StaticString,
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        query_scales: InputTensor[dtype=DType.float32, rank=1, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        blocks: MutableInputTensor[dtype=dtype, rank=6, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        page_stride: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: UInt32,
        scale: Float32,
        last_tokens: UInt32,
        input_norm: InputTensor[dtype=DType.float32, rank=1, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        epsilon: Float32,
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        weights: InputVariadicTensors[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, hidden_size]`, where it is wanted, and this step's part
        of `blocks`.

        Parameters:
            dtype: Of the KV cache.
            kinds: A byte for each weight, as `Stage` takes it.
            portable: Whether to do without AVX-512.
            rounded: A bit for each weight: as `Stage` takes it.
            amx: A bit for each weight: as `Stage` takes it.
            head_dim: As `Attending` takes it.
            window: As `Attending` takes it.
            scaled: As `Attending` takes it.
            rounded_attention: As `Attending` takes it.
            target: Where the op runs, a CPU.

        Args:
            y: The block's output.
            x: Its input, `[tokens, hidden_size]`.
            freqs_cis: This and what follows, up to `scale`, is as `Attending` takes it.
            query_scales: See there.
            row_offsets: See there.
            blocks: See there.
            cache_lengths: See there.
            lookup_table: See there.
            page_stride: See there.
            layer: See there.
            scale: See there.
            last_tokens: Of how many of each request's `y` is wanted.
            input_norm: The weight of the first RMSNorm, `[hidden_size]`.
            norm: That of the second.
            epsilon: Of both.
            rows: How many rows each weight has.
            weights: Of q, k and v, o, gate and up, down, as `layout.mojo` describes.
                Those that multiply the same are of one class: dense or not, rounded
                or not.
            ctx: What runs the threads.
        """
        comptime assert weights.size == 7, "q, k, v, o, gate, up and down"
        var tokens = x.dim_size(0)
        var hidden = x.dim_size(1)
        var threads = parallelism_level(None)
        var counts = rows.unsafe_ptr()
        var queries = Int(counts.unsafe_load(0))
        var width = queries
        comptime for i in range(1, 3):
            width += Int(counts.unsafe_load(i))
        var wide = Int(counts.unsafe_load(4))
        if (
            queries % head_dim != 0
            or queries + 2 * blocks.dim_size(4) * head_dim != width
        ):
            raise Error(width, " rows of q, k and v do not fit the KV cache's heads")
        for i in range(3, 7, 3):
            if Int(counts.unsafe_load(i)) != hidden:
                raise Error("o and down do not have ", hidden, " rows")
        if Int(counts.unsafe_load(5)) != wide:
            raise Error("gate has ", wide, " rows, up has not")
        comptime untracked = MutUntrackedOrigin
        var pointers = List[Weight](capacity=7)
        comptime for i in range(7):
            pointers.append(weights[i].unsafe_ptr().unsafe_origin_cast[untracked]())

        comptime First = Stage[
            kinds & 0xFFFFFF, 3, portable, Bool(rounded & 1), Bool(amx & 1)
        ]
        comptime Second = Stage[
            kind_of(kinds, 3), 1, portable, Bool(rounded & 8), Bool(amx & 8)
        ]
        comptime Third = Stage[
            (kinds >> 32) & 0xFFFF, 2, portable, Bool(rounded & 16), Bool(amx & 16)
        ]
        comptime Fourth = Stage[
            kind_of(kinds, 6), 1, portable, Bool(rounded & 64), Bool(amx & 64)
        ]
        var qkv = First(
            tokens,
            hidden,
            counts,
            [pointers[0], pointers[1], pointers[2]],
            threads,
        )
        # What is between the stages. `qkv` is read before `gate` and `up` are written.
        var store = List[Float32](
            unsafe_uninit_length=tokens * (max(width, 2 * wide) + queries)
        )
        var memory = store.unsafe_ptr().unsafe_origin_cast[untracked]()
        var inputs = Numbers(x.unsafe_ptr().unsafe_origin_cast[untracked](), hidden)
        var outputs = Numbers(y.unsafe_ptr().unsafe_origin_cast[untracked](), hidden)
        var attended = Numbers(memory, queries)
        var projected = Numbers(memory.unsafe_offset(tokens * queries), width)
        var between = Numbers(projected.first, 2 * wide)
        var attending = Attending[dtype, head_dim, window, scaled, rounded_attention](
            attended.first,
            projected.first,
            tokens,
            queries // head_dim,
            freqs_cis,
            query_scales,
            row_offsets,
            blocks,
            cache_lengths,
            lookup_table,
            page_stride,
            Int(layer),
            scale,
            threads,
            Int(last_tokens),
        )
        var wanted = Wanted(
            attending.offsets, attending.requests, Int(last_tokens)
        )
        var o = Second(
            len(wanted), queries, counts.unsafe_offset(3), [pointers[3]], threads
        )
        var gate_up = Third(
            len(wanted),
            hidden,
            counts.unsafe_offset(4),
            [pointers[4], pointers[5]],
            threads,
        )
        var down = Fourth(
            len(wanted), wide, counts.unsafe_offset(6), [pointers[6]], threads
        )

        @inline(.always)
        def load_input(token: Int, column: Int, count: Int) {imm} -> Floats:
            return load_row(inputs.at(token, column), count)

        @inline(.always)
        def keep_projected(
            token: Int, column: Int, sums: Floats, count: Int
        ) {imm}:
            store_row(projected.at(token, column), sums, count)

        @inline(.always)
        def load_attended(row: Int, column: Int, count: Int) {imm} -> Floats:
            return load_row(attended.at(wanted[row], column), count)

        @inline(.always)
        def add_to_input(row: Int, column: Int, sums: Floats, count: Int) {imm}:
            var token = wanted[row]
            var before = load_row(inputs.at(token, column), count)
            store_row(outputs.at(token, column), before + sums, count)

        @inline(.always)
        def load_output(row: Int, column: Int, count: Int) {imm} -> Floats:
            return load_row(outputs.at(wanted[row], column), count)

        @inline(.always)
        def keep_between(row: Int, column: Int, sums: Floats, count: Int) {imm}:
            store_row(between.at(row, column), sums, count)

        @inline(.always)
        def load_between(row: Int, column: Int, count: Int) {imm} -> Floats:
            var gate = load_row(between.at(row, column), count)
            var up = load_row(between.at(row, column + wide), count)
            return silu(gate) * up

        @inline(.always)
        def add_to_output(row: Int, column: Int, sums: Floats, count: Int) {imm}:
            var at = outputs.at(wanted[row], column)
            store_row(at, load_row(at, count) + sums, count)

        var phases = Phases(
            [
                qkv.to_interleave(),
                len(qkv.shares),
                attending.stores,
                len(attending.plan.tasks),
                attending.merges,
                o.to_interleave(),
                len(o.shares),
                gate_up.to_interleave(),
                len(gate_up.shares),
                down.to_interleave(),
                len(down.shares),
            ]
        )

        @inline(.always)
        def run(thread: Int) {imm}:
            var first = input_norm.unsafe_ptr()
            var second = norm.unsafe_ptr()
            qkv.run[True](
                phases, 0, thread, load_input, keep_projected, first, epsilon
            )
            attending.run(phases, 2, thread)
            o.run(phases, 5, thread, load_attended, add_to_input, second)
            gate_up.run[True](
                phases, 7, thread, load_output, keep_between, second, epsilon
            )
            down.run(phases, 9, thread, load_between, add_to_output, second)

        ctx.enqueue_cpu_range(run, count=min(threads, phases.most_shares()))
        ctx.synchronize()
        _ = phases^
        _ = attending^
        _ = wanted^
        _ = qkv^
        _ = o^
        _ = gate_up^
        _ = down^
        _ = store^
