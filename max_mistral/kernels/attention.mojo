"""The op of attention."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .attend import Attending
from .phases import Phases


@extensibility.register("mistral_attention")
struct Attention:
    """What `Attending` does."""

    @staticmethod
    def execute[
        dtype: DType,
        head_dim: Int,
        window: Int,
        scaled: Bool,
        rounded_attention: Bool,
        target: StaticString,
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        qkv: InputTensor[dtype=DType.float32, rank=2, ...],
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        query_scales: InputTensor[dtype=DType.float32, rank=1, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        blocks: MutableInputTensor[dtype=dtype, rank=6, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        page_stride: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: UInt32,
        scale: Float32,
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, heads, head_dim]`, and this step's part of `blocks`;
        see `Attending`.
        """
        var tokens = y.dim_size(0)
        var heads = y.dim_size(1)
        var row = (heads + 2 * blocks.dim_size(4)) * head_dim
        if qkv.dim_size(0) != tokens or qkv.dim_size(1) != row:
            raise Error("queries, keys and values are not [", tokens, ", ", row, "]")
        var threads = parallelism_level(None)
        comptime untracked = MutUntrackedOrigin
        var attending = Attending[dtype, head_dim, window, scaled, rounded_attention](
            y.unsafe_ptr().unsafe_origin_cast[untracked](),
            qkv.unsafe_ptr().unsafe_origin_cast[untracked](),
            tokens,
            heads,
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
        )
        var phases = Phases(
            [attending.stores, len(attending.plan.tasks), attending.merges]
        )

        @inline(.always)
        def run(thread: Int) {imm}:
            attending.run(phases, 0, thread)

        ctx.enqueue_cpu_range(run, count=min(threads, phases.most_shares()))
        ctx.synchronize()
        _ = phases^
        _ = attending^
