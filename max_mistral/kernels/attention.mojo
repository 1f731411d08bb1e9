"""The attention op that MAX graphs call, and how its work is shared."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.atomic import Atomic
from std.math import ceildiv

from .spans import SPAN, TILE, span
from .kv_cache import Cache, check_step, copy_rows
from .softmax import Reads, clear, finish, merge, padded, state_size


@fieldwise_init
struct Task(ImplicitlyCopyable):
    """Some tokens of a request by some spans of its keys."""

    var request: Int
    var token: Int
    """The first one's place among all requests' tokens."""
    var tokens: Int
    var position: Int
    """The first one's place in its request."""
    var begin: Int
    """The first span's first key."""
    var spans: Int
    """How many spans there are from `begin`."""
    var kv_begin: Int
    """The first head of keys."""
    var kv_end: Int
    var slot: Int
    """Where the one span's states are kept until the others' are there too; -1
    if this task does all of its tokens' spans and heads."""


@fieldwise_init
struct Merge(ImplicitlyCopyable):
    """A token whose spans are in slots."""

    var token: Int
    var slot: Int
    """The first span's."""
    var spans: Int


struct Plan(Movable):
    """How the tokens of a step are shared out."""

    var tasks: List[Task]
    var merges: List[Merge]
    var slots: Int

    def __init__(
        out self,
        row_offsets: ImmPointer[UInt32, _],
        cache_lengths: ImmPointer[UInt32, _],
        requests: Int,
        window: Int,
        kv_heads: Int,
        threads: Int,
    ):
        """Makes tasks of tokens; of a token alone in its step, by spans and heads.
        """
        self.tasks = List[Task]()
        self.merges = List[Merge]()
        self.slots = 0
        var parts = min(threads, kv_heads)
        for request in range(requests):
            var first = Int(row_offsets.unsafe_load(request))
            var end = Int(row_offsets.unsafe_load(request + 1))
            var cached = Int(cache_lengths.unsafe_load(request))
            for token in range(first, end, TILE):
                var count = min(TILE, end - token)
                var position = cached + token - first
                var begin = max(0, position - window + 1) // SPAN * SPAN
                var spans = ceildiv(position + count - begin, SPAN)
                var task = Task(
                    request, token, count, position, begin, spans, 0, kv_heads, -1
                )
                if end - first > 1:
                    self.tasks.append(task)
                    continue
                self.merges.append(Merge(token, self.slots, spans))
                for i in range(spans):
                    task.begin = begin + i * SPAN
                    task.spans = 1
                    task.slot = self.slots
                    self.slots += 1
                    for part in range(parts):
                        task.kv_begin = part * kv_heads // parts
                        task.kv_end = (part + 1) * kv_heads // parts
                        self.tasks.append(task)


@extensibility.register("mistral_attention")
struct Attention:
    """Causal attention over `window` keys, from MAX's paged KV cache."""

    @staticmethod
    def execute[
        dtype: DType, head_dim: Int, window: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        q: InputTensor[dtype=DType.float32, rank=3, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        blocks: MutableInputTensor[dtype=dtype, rank=6, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        page_stride: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: UInt32,
        scale: Float32,
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, heads, head_dim]` as `q` is.

        `blocks` are as `Cache` has them, of any floating-point `dtype`.
        `row_offsets` are `[requests + 1]`, `cache_lengths` `[requests]`, what
        each has in the cache from earlier steps; this step's keys and values
        are in `blocks` too. `page_stride` is -1 if pages are packed.
        """
        var yp = y.unsafe_ptr()
        var qp = q.unsafe_ptr()
        var heads = q.dim_size(1)
        var page_size = blocks.dim_size(3)
        check_step(
            q.dim_size(0),
            row_offsets,
            cache_lengths,
            lookup_table,
            blocks.dim_size(0),
            page_size,
        )
        var layers = blocks.dim_size(2)
        var kv_heads = blocks.dim_size(4)
        var width = kv_heads * head_dim
        var stride = Int(page_stride.unsafe_ptr().unsafe_load(0))
        if stride < 0:
            stride = 2 * layers * page_size * width
        var pages = lookup_table.unsafe_ptr()
        var table = lookup_table.dim_size(1)
        var pool = blocks.unsafe_ptr()

        var group = heads // kv_heads
        var threads = parallelism_level(None)
        var plan = Plan(
            row_offsets.unsafe_ptr(),
            cache_lengths.unsafe_ptr(),
            cache_lengths.dim_size(0),
            window,
            kv_heads,
            threads,
        )
        threads = min(threads, len(plan.tasks))
        comptime size = state_size(head_dim)
        comptime depth = padded(head_dim)
        comptime copied = 0 if depth == head_dim else depth
        # The states in slots, then each thread's of a tile for one span.
        var tile = TILE * heads
        var span_store = List[Float32](
            unsafe_uninit_length=plan.slots * heads * size
            + threads * tile * size
        )
        # Each thread's states of a tile for all spans so far, and its queries
        # where head_dim is no whole number of vectors.
        var total_store = List[Float32](
            unsafe_uninit_length=threads * tile * size
        )
        var query_store = List[Float32](
            unsafe_uninit_length=threads * tile * copied
        )
        var slots = span_store.unsafe_ptr()
        var totals = total_store.unsafe_ptr()
        var copies = query_store.unsafe_ptr()
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
                var cache = Cache(
                    pool,
                    pages.unsafe_offset(task.request * table),
                    stride,
                    page_size,
                    Int(layer),
                    layers,
                    width,
                )
                var rows = task.tokens * heads
                var queries = qp.unsafe_offset(task.token * heads * head_dim)

                @inline(.always)
                def run(q: Reads) {imm}:
                    var whole = task.slot < 0
                    var place = (plan.slots * heads + thread * tile) * size
                    if whole:
                        clear[head_dim](total, rows)
                    else:
                        place = task.slot * heads * size
                    var states = slots.unsafe_offset(place)
                    for s in range(task.spans):
                        clear[head_dim](
                            states.unsafe_offset(task.kv_begin * group * size),
                            rows * (task.kv_end - task.kv_begin) // kv_heads,
                        )
                        span[head_dim](
                            states,
                            q,
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
                        if whole:
                            merge[head_dim](total, states, rows)
                    if whole:
                        var out = task.token * heads * head_dim
                        finish[head_dim](yp.unsafe_offset(out), total, rows)

                comptime if depth == head_dim:
                    run(queries)
                else:
                    var own = copies.unsafe_offset(thread * tile * depth)
                    copy_rows[head_dim](own, queries, head_dim, rows)
                    run(own)

        ctx.enqueue_cpu_range(attend, count=threads)
        ctx.synchronize()

        for token in plan.merges:
            clear[head_dim](totals, heads)
            for s in range(token.spans):
                var place = (token.slot + s) * heads * size
                merge[head_dim](totals, slots.unsafe_offset(place), heads)
            finish[head_dim](
                yp.unsafe_offset(token.token * heads * head_dim),
                totals,
                heads,
            )
        _ = taken^
        _ = span_store^
        _ = total_store^
        _ = query_store^
        _ = plan^
