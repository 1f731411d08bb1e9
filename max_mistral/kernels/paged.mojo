"""The attention op that MAX graphs call, and how its work is shared."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.math import ceildiv

from .attention import SPAN, TILE, span
from .cache import Cache, pack
from .states import clear, finish, merge, padded, state_size


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
    var slot: Int
    """Where this span's state is kept until the others are there too; -1 if
    this task does them all."""


def tasks(
    row_offsets: ImmPointer[UInt32, _],
    cache_lengths: ImmPointer[UInt32, _],
    requests: Int,
    window: Int,
) -> List[Task]:
    """Shares out the tokens; a token alone in its step also by its spans."""
    var list = List[Task]()
    var slots = 0
    for request in range(requests):
        var first = Int(row_offsets.unsafe_load(request))
        var end = Int(row_offsets.unsafe_load(request + 1))
        var cached = Int(cache_lengths.unsafe_load(request))
        var alone = end - first == 1
        for token in range(first, end, TILE):
            var count = min(TILE, end - token)
            var position = cached + token - first
            var begin = max(0, position - window + 1) // SPAN * SPAN
            var spans = ceildiv(position + count - begin, SPAN)
            if not alone:
                list.append(
                    Task(request, token, count, position, begin, spans, -1)
                )
                continue
            for i in range(spans):
                var at = begin + i * SPAN
                list.append(
                    Task(request, token, 1, position, at, spans - i, slots)
                )
                slots += 1
    return list^


@extensibility.register("mistral_attention")
struct Attention:
    """Causal attention over `window` keys, from MAX's paged KV cache."""

    @staticmethod
    def execute[
        head_dim: Int, window: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        q: InputTensor[dtype=DType.float32, rank=3, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        blocks: MutableInputTensor[dtype=DType.float32, rank=6, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        page_stride: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: UInt32,
        scale: Float32,
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, heads, head_dim]` as `q` is.

        `row_offsets` are `[requests + 1]`, `cache_lengths` `[requests]`, what
        each has in the cache from earlier steps; this step's keys and values
        are in `blocks` too. `page_stride` is -1 if pages are packed.
        """
        var yp = y.unsafe_ptr()
        var qp = q.unsafe_ptr()
        var heads = q.dim_size(1)
        var page_size = blocks.dim_size(3)
        var layers = blocks.dim_size(2)
        var width = blocks.dim_size(4) * head_dim
        var stride = Int(page_stride.unsafe_ptr().unsafe_load(0))
        if stride < 0:
            stride = 2 * layers * page_size * width
        var pages = lookup_table.unsafe_ptr()
        var table = lookup_table.dim_size(1)
        var pool = blocks.unsafe_ptr()

        var work = tasks(
            row_offsets.unsafe_ptr(),
            cache_lengths.unsafe_ptr(),
            cache_lengths.dim_size(0),
            window,
        )
        comptime size = state_size(head_dim)
        var tile = TILE * heads * size
        var threads = min(parallelism_level(None), len(work))
        var slots = 0
        for task in work:
            slots = max(slots, task.slot + 1)
        # The states in slots; of each thread the states of a tile for one span,
        # and for all spans so far.
        var span_store = List[Float32](
            unsafe_uninit_length=slots * heads * size + threads * tile
        )
        var total_store = List[Float32](unsafe_uninit_length=threads * tile)
        var partial = span_store.unsafe_ptr()
        var totals = total_store.unsafe_ptr()
        comptime depth = padded(head_dim)
        var query_store = List[Float32](
            unsafe_uninit_length=threads * TILE * heads * depth
        )
        var packed = query_store.unsafe_ptr()

        @inline(.always)
        def attend(thread: Int) {imm}:
            var total = totals.unsafe_offset(thread * tile)
            for i in range(thread, len(work), threads):
                var task = work[i]
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
                var queries = packed.unsafe_offset(
                    thread * TILE * heads * depth
                )
                var src = qp.unsafe_offset(task.token * heads * head_dim)
                pack[head_dim](queries, src, head_dim, rows)
                var whole = task.slot < 0
                var place = task.slot * heads * size
                if whole:
                    place = slots * heads * size + thread * tile
                    clear[head_dim](total, rows)
                var state = partial.unsafe_offset(place)
                for s in range(task.spans if whole else 1):
                    clear[head_dim](state, rows)
                    span[head_dim](
                        state,
                        queries,
                        cache,
                        heads,
                        task.tokens,
                        task.position,
                        window,
                        task.begin + s * SPAN,
                        scale,
                    )
                    if whole:
                        merge[head_dim](total, state, rows)
                if whole:
                    finish[head_dim](
                        yp.unsafe_offset(task.token * heads * head_dim),
                        total,
                        rows,
                    )

        ctx.enqueue_cpu_range(attend, count=threads)
        ctx.synchronize()

        var i = 0
        while i < len(work):
            var task = work[i]
            if task.slot < 0:
                i += 1
                continue
            clear[head_dim](totals, heads)
            for s in range(task.spans):
                var place = (task.slot + s) * heads * size
                merge[head_dim](totals, partial.unsafe_offset(place), heads)
            finish[head_dim](
                yp.unsafe_offset(task.token * heads * head_dim), totals, heads
            )
            i += task.spans
        _ = span_store^
        _ = total_store^
        _ = query_store^
        _ = work^
