"""The attention op that MAX graphs call."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.atomic import Atomic

from .kv_cache import Cache, check_step, in_word
from .plan import Plan
from .rotate import rotate_and_store
from .rows import SPAN
from .spans import TILE, span
from .softmax import clear, finish, merge, state_size


# Heads' states that one thread merges before others would have begun.
comptime FEW_STATES = 512


@extensibility.register("mistral_attention")
struct Attention:
    """Rotary embeddings, this step's keys and values put into MAX's paged KV
    cache, then causal attention over `window` keys."""

    @staticmethod
    def execute[
        dtype: DType,
        head_dim: Int,
        window: Int,
        scaled: Bool,
        rounded: Bool,
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
        """Writes `y`, `[tokens, heads, head_dim]`, and this step's part of `blocks`.

        `qkv` are `[tokens, (heads + 2 * kv_heads) * head_dim]`, `freqs_cis`
        cosines and sines, `[positions, head_dim / 2 * 2]`. `query_scales` are
        `[tokens]` if `scaled`. If `rounded`, queries and the weights of values are
        rounded to bfloat16, of which `blocks` are then. `row_offsets` are
        `[requests + 1]`, `cache_lengths` `[requests]`, what each has in the cache
        from earlier steps. `page_stride` is -1 if pages are packed.
        """
        # The rotated queries are there until what they attend to takes their place.
        var yp = y.unsafe_ptr()
        var heads = y.dim_size(1)
        var tokens = y.dim_size(0)
        var page_size = blocks.dim_size(3)
        check_step(
            tokens,
            row_offsets,
            cache_lengths,
            lookup_table,
            blocks.dim_size(0),
            page_size,
            freqs_cis.dim_size(0),
        )
        var layers = blocks.dim_size(2)
        var kv_heads = blocks.dim_size(4)
        var width = kv_heads * head_dim
        var row = heads * head_dim + 2 * width
        if qkv.dim_size(0) != tokens or qkv.dim_size(1) != row:
            raise Error("queries, keys and values are not [", tokens, ", ", row, "]")
        if freqs_cis.dim_size(1) != head_dim:
            raise Error("rotary embeddings are not as wide as a head, ", head_dim)
        if scaled and query_scales.dim_size(0) != tokens:
            raise Error(
                query_scales.dim_size(0), " scales of ", tokens, " queries"
            )
        comptime assert head_dim % 2 == 0, "lanes are rotated in pairs"
        var stride = Int(page_stride.unsafe_ptr().unsafe_load(0))
        if stride < 0:
            stride = 2 * layers * page_size * width
        if stride % in_word[dtype]() != 0:
            raise Error("pages are ", stride, " numbers apart, not whole words")
        var pages = lookup_table.unsafe_ptr()
        var table = lookup_table.dim_size(1)
        var pool = blocks.unsafe_ptr()
        var offsets = row_offsets.unsafe_ptr()
        var lengths = cache_lengths.unsafe_ptr()
        var requests = cache_lengths.dim_size(0)
        var threads = parallelism_level(None)

        var first_cache = Cache(
            pool, pages, stride, page_size, Int(layer), layers, width
        )
        # A few tokens are stored before other threads would have begun.
        var parts = threads if tokens > TILE else 1

        @inline(.always)
        def store(part: Int) {imm}:
            var begin = part * tokens // parts
            var end = (part + 1) * tokens // parts
            for request in range(requests):
                var first = Int(offsets.unsafe_load(request))
                var stop = Int(offsets.unsafe_load(request + 1))
                var cache = first_cache.of_request(request, table)
                for token in range(max(begin, first), min(end, stop)):
                    var at = Int(lengths.unsafe_load(request)) + token - first
                    var query_scale = Float32(1)
                    comptime if scaled:
                        query_scale = query_scales.unsafe_ptr().unsafe_load(
                            token
                        )
                    rotate_and_store[head_dim, rounded](
                        yp.unsafe_offset(token * heads * head_dim),
                        pool,
                        cache,
                        qkv.unsafe_ptr().unsafe_offset(token * row),
                        freqs_cis.unsafe_ptr().unsafe_offset(at * head_dim),
                        heads,
                        at,
                        query_scale,
                    )

        if parts == 1:
            store(0)
        else:
            ctx.enqueue_cpu_range(store, count=parts)
            ctx.synchronize()

        var group = heads // kv_heads
        var plan = Plan(
            offsets,
            lengths,
            requests,
            window,
            kv_heads,
            threads,
        )
        threads = min(threads, len(plan.tasks))
        comptime size = state_size(head_dim)
        # The states in slots, then each thread's of a tile for one span.
        var tile = TILE * heads
        var span_store = List[Float32](
            unsafe_uninit_length=plan.slots * heads * size
            + threads * tile * size
        )
        # Each thread's states of a tile for all spans so far.
        var total_store = List[Float32](
            unsafe_uninit_length=threads * tile * size
        )
        var slots = span_store.unsafe_ptr()
        var totals = total_store.unsafe_ptr()
        var taken = Atomic[Int64](0)
        var counter = Pointer(to=taken)

        @inline(.always)
        def attend(thread: Int) {imm}:
            var total = totals.unsafe_offset(thread * tile * size)
            while True:
                var i = Int(counter[].fetch_add(1))
                if i >= len(plan.tasks):
                    break
                var task = plan.tasks[i]
                var cache = first_cache.of_request(task.request, table)
                var queries = yp.unsafe_offset(task.token * heads * head_dim)
                var own_heads = (task.kv_end - task.kv_begin) * group

                @inline(.always)
                def first_head(token: Int) {imm} -> Int:
                    """Among the states `[tokens, heads]`."""
                    return token * heads + task.kv_begin * group

                var whole = task.slot < 0
                var place = (plan.slots * heads + thread * tile) * size
                if whole:
                    for t in range(task.tokens):
                        var at = first_head(t) * size
                        clear[head_dim](total.unsafe_offset(at), own_heads)
                else:
                    place = task.slot * heads * size
                var states = slots.unsafe_offset(place)
                for s in range(task.spans):
                    span[head_dim, rounded](
                        states,
                        queries.unsafe_bitcast[UInt32](),
                        cache,
                        heads,
                        task.kv_begin,
                        task.kv_end,
                        task.tokens,
                        task.position,
                        window,
                        task.begin + s * SPAN,
                        scale,
                    )
                    if not whole:
                        continue
                    for t in range(task.tokens):
                        var at = first_head(t) * size
                        merge[head_dim](
                            total.unsafe_offset(at),
                            states.unsafe_offset(at),
                            own_heads,
                        )
                if not whole:
                    continue
                for t in range(task.tokens):
                    var at = first_head(t)
                    var out = (task.token * heads + at) * head_dim
                    finish[head_dim](
                        yp.unsafe_offset(out),
                        total.unsafe_offset(at * size),
                        own_heads,
                    )

        ctx.enqueue_cpu_range(attend, count=threads)
        ctx.synchronize()

        var merge_parts = threads if plan.slots * heads > FEW_STATES else 1

        @inline(.always)
        def merge_heads(part: Int) {imm}:
            var begin = part * heads // merge_parts
            var own_heads = (part + 1) * heads // merge_parts - begin
            var total = totals.unsafe_offset(begin * size)
            for token in plan.merges:
                clear[head_dim](total, own_heads)
                for s in range(token.spans):
                    var place = ((token.slot + s) * heads + begin) * size
                    merge[head_dim](total, slots.unsafe_offset(place), own_heads)
                finish[head_dim](
                    yp.unsafe_offset((token.token * heads + begin) * head_dim),
                    total,
                    own_heads,
                )

        if merge_parts == 1:
            merge_heads(0)
        else:
            ctx.enqueue_cpu_range(merge_heads, count=merge_parts)
            ctx.synchronize()
        _ = taken^
        _ = span_store^
        _ = total_store^
        _ = plan^
