"""The attention of a step as work that threads share: stored, attended, merged."""

from extensibility import InputTensor
from extensibility import _MutableInputTensor as MutableInputTensor

from .kv_cache import Cache, check_step, in_word, room
from .phases import Phases
from .plan import Plan
from .rotate import rotate_and_store
from .rows import SPAN
from .softmax import clear, finish, merge, state_size
from .spans import TILE, span

# Heads' states that one thread merges before others would have begun.
comptime FEW_STATES = 512

comptime Outputs = MutPointer[Float32, MutUntrackedOrigin]
comptime Inputs = ImmPointer[Float32, ImmUntrackedOrigin]
comptime Integers = ImmPointer[UInt32, ImmUntrackedOrigin]


struct Attending[
    dtype: DType, head_dim: Int, window: Int, scaled: Bool, rounded: Bool
]:
    """Rotary embeddings, this step's keys and values put into MAX's paged KV cache,
    then causal attention over `window` keys.

    Parameters:
        dtype: Of the KV cache.
        head_dim: Lanes of a head.
        window: Keys that a token sees, itself included.
        scaled: Whether queries are multiplied by `query_scales`.
        rounded: Whether queries and the weights of values are rounded to bfloat16; only
            with a cache in bfloat16 or int8.
    """

    comptime size = state_size(Self.head_dim)

    var y: Outputs
    var qkv: Inputs
    var freqs_cis: Inputs
    var query_scales: Inputs
    var offsets: Integers
    var lengths: Integers
    var pool: MutPointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var cache: Cache[Self.dtype, ImmUntrackedOrigin, ImmUntrackedOrigin]
    """As the first request sees it."""
    var columns: Int
    """How many pages the lookup table has for each request."""
    var tokens: Int
    var requests: Int
    var heads: Int
    var kv_heads: Int
    var scale: Float32
    var plan: Plan
    var stores: Int
    """Into how many shares storing is cut."""
    var merges: Int
    """Into how many shares merging is cut."""
    var _spans: List[Float32]
    """The states in slots, then each thread's of a tile for one span."""
    var _totals: List[Float32]
    """Each thread's states of a tile for all spans so far."""

    def __init__(
        out self,
        y: Outputs,
        qkv: Inputs,
        tokens: Int,
        heads: Int,
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        query_scales: InputTensor[dtype=DType.float32, rank=1, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        blocks: MutableInputTensor[dtype=Self.dtype, rank=6, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        page_stride: InputTensor[dtype=DType.int64, rank=1, ...],
        layer: Int,
        scale: Float32,
        threads: Int,
        last_tokens: Int = Int.MAX,
    ) raises:
        """Checks a step and cuts its work.

        Args:
            y: `[tokens, heads, head_dim]`; the rotated queries are there until what
                they attend to takes their place.
            qkv: `[tokens, (heads + 2 * kv_heads) * head_dim]`.
            tokens: How many there are.
            heads: Heads of queries.
            freqs_cis: Cosines and sines, `[positions, head_dim / 2 * 2]`.
            query_scales: `[tokens]` if `scaled`.
            row_offsets: Where each request's tokens begin and end, `[requests + 1]`.
            blocks: The pages, `[pages, 2, layers, page_size, kv_heads, room]`, where
                `room` is `head_dim` or, in int8, more.
            cache_lengths: What each request has in the cache from earlier steps,
                `[requests]`.
            lookup_table: Each request's pages in order, `[requests, most pages]`.
            page_stride: Numbers from one page to the next; -1 if pages are packed.
            layer: Which part of each page.
            scale: What scores are multiplied by.
            threads: How many there are.
            last_tokens: How many of each request's attend; `y` of the others keeps
                their rotated queries.
        """
        comptime assert Self.head_dim % 2 == 0, "lanes are rotated in pairs"
        comptime words = Self.head_dim % in_word[Self.dtype]() == 0
        comptime assert words, "a head is whole words"
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
        if freqs_cis.dim_size(1) != Self.head_dim:
            raise Error(
                "rotary embeddings are not as wide as a head, ", Self.head_dim
            )
        if Self.scaled and query_scales.dim_size(0) != tokens:
            raise Error(
                query_scales.dim_size(0), " scales of ", tokens, " queries"
            )
        var layers = blocks.dim_size(2)
        self.kv_heads = blocks.dim_size(4)
        var width = self.kv_heads * Self.head_dim
        var of_head = room[Self.dtype](Self.head_dim)
        if blocks.dim_size(5) != of_head:
            raise Error(
                "the KV cache has room for ",
                blocks.dim_size(5),
                " numbers of a head, not for ",
                of_head,
            )
        var of_token = self.kv_heads * of_head
        var stride = Int(page_stride.unsafe_ptr().unsafe_load(0))
        if stride < 0:
            stride = 2 * layers * page_size * of_token
        if stride % in_word[Self.dtype]() != 0:
            raise Error("pages are ", stride, " numbers apart, not whole words")
        comptime untracked = MutUntrackedOrigin
        self.y = y
        self.qkv = qkv
        self.freqs_cis = freqs_cis.unsafe_ptr().unsafe_origin_cast[untracked]()
        self.query_scales = query_scales.unsafe_ptr().unsafe_origin_cast[
            untracked
        ]()
        self.offsets = row_offsets.unsafe_ptr().unsafe_origin_cast[untracked]()
        self.lengths = cache_lengths.unsafe_ptr().unsafe_origin_cast[untracked]()
        self.pool = blocks.unsafe_ptr().unsafe_origin_cast[untracked]()
        self.cache = Cache[Self.dtype, ImmUntrackedOrigin, ImmUntrackedOrigin](
            self.pool,
            lookup_table.unsafe_ptr().unsafe_origin_cast[untracked](),
            stride,
            page_size,
            layer,
            layers,
            width,
            of_token,
        )
        self.columns = lookup_table.dim_size(1)
        self.tokens = tokens
        self.requests = cache_lengths.dim_size(0)
        self.heads = heads
        self.scale = scale
        self.plan = Plan(
            self.offsets,
            self.lengths,
            self.requests,
            Self.window,
            self.kv_heads,
            threads,
            last_tokens,
        )
        # A few tokens are stored before other threads would have begun.
        self.stores = threads if tokens > TILE else 1
        self.merges = 0
        if len(self.plan.merges):
            var many = self.plan.slots * heads > FEW_STATES
            self.merges = threads if many else 1
        var tile = threads * TILE * heads
        self._spans = List[Float32](
            unsafe_uninit_length=(self.plan.slots * heads + tile) * Self.size
        )
        self._totals = List[Float32](unsafe_uninit_length=tile * Self.size)

    @inline(.always)
    def run(self, phases: Phases, phase: Int, thread: Int):
        """Does a thread's part of three phases: of `stores`, of the plan's tasks, and
        of `merges` shares.

        Args:
            phases: All of the op.
            phase: The first of the three.
            thread: Which of the threads.
        """

        @inline(.always)
        def store(share: Int) {imm}:
            self._store(share)

        @inline(.always)
        def attend(share: Int) {imm}:
            self._attend(share, thread)

        @inline(.always)
        def merge_heads(share: Int) {imm}:
            self._merge(share)

        phases.run(phase, thread, store)
        phases.run(phase + 1, thread, attend)
        phases.run(phase + 2, thread, merge_heads)

    @inline(.always)
    def _states(self) -> Outputs:
        return _mutable(self._spans.unsafe_ptr())

    @inline(.always)
    def _total(self, thread: Int) -> Outputs:
        var at = thread * TILE * self.heads * Self.size
        return _mutable(self._totals.unsafe_ptr()).unsafe_offset(at)

    @inline(.always)
    def _store(self, share: Int):
        var begin = share * self.tokens // self.stores
        var end = (share + 1) * self.tokens // self.stores
        var row = (self.heads + 2 * self.kv_heads) * Self.head_dim
        for request in range(self.requests):
            var first = Int(self.offsets.unsafe_load(request))
            var stop = Int(self.offsets.unsafe_load(request + 1))
            var cache = self.cache.of_request(request, self.columns)
            for token in range(max(begin, first), min(end, stop)):
                var at = Int(self.lengths.unsafe_load(request)) + token - first
                var query_scale = Float32(1)
                comptime if Self.scaled:
                    query_scale = self.query_scales.unsafe_load(token)
                rotate_and_store[Self.head_dim, Self.rounded](
                    self.y.unsafe_offset(token * self.heads * Self.head_dim),
                    self.pool,
                    cache,
                    self.qkv.unsafe_offset(token * row),
                    self.freqs_cis.unsafe_offset(at * Self.head_dim),
                    self.heads,
                    at,
                    query_scale,
                )

    @inline(.always)
    def _attend(self, share: Int, thread: Int):
        var task = self.plan.tasks[share]
        var total = self._total(thread)
        var heads = self.heads
        var group = heads // self.kv_heads
        var cache = self.cache.of_request(task.request, self.columns)
        var queries = self.y.unsafe_offset(task.token * heads * Self.head_dim)
        var own_heads = (task.kv_end - task.kv_begin) * group

        @inline(.always)
        def first_head(token: Int) {imm} -> Int:
            """Among the states `[tokens, heads]`."""
            return token * heads + task.kv_begin * group

        var whole = task.slot < 0
        var place = (self.plan.slots + thread * TILE) * heads * Self.size
        if whole:
            for t in range(task.tokens):
                var at = first_head(t) * Self.size
                clear[Self.head_dim](total.unsafe_offset(at), own_heads)
        else:
            place = task.slot * heads * Self.size
        var states = self._states().unsafe_offset(place)
        for s in range(task.spans):
            span[Self.head_dim, Self.rounded](
                states,
                queries.unsafe_bitcast[UInt32](),
                cache,
                heads,
                task.kv_begin,
                task.kv_end,
                task.tokens,
                task.position,
                Self.window,
                task.begin + s * SPAN,
                self.scale,
            )
            if not whole:
                continue
            for t in range(task.tokens):
                var at = first_head(t) * Self.size
                merge[Self.head_dim](
                    total.unsafe_offset(at), states.unsafe_offset(at), own_heads
                )
        if not whole:
            return
        for t in range(task.tokens):
            var at = first_head(t)
            var out = (task.token * heads + at) * Self.head_dim
            finish[Self.head_dim](
                self.y.unsafe_offset(out),
                total.unsafe_offset(at * Self.size),
                own_heads,
            )

    @inline(.always)
    def _merge(self, share: Int):
        var begin = share * self.heads // self.merges
        var own_heads = (share + 1) * self.heads // self.merges - begin
        # All threads are done with their own.
        var total = self._total(0).unsafe_offset(begin * Self.size)
        for token in self.plan.merges:
            clear[Self.head_dim](total, own_heads)
            for s in range(token.spans):
                var place = (token.slot + s) * self.heads + begin
                var states = self._states().unsafe_offset(place * Self.size)
                merge[Self.head_dim](total, states, own_heads)
            var out = (token.token * self.heads + begin) * Self.head_dim
            finish[Self.head_dim](self.y.unsafe_offset(out), total, own_heads)


@inline(.always)
def _mutable(pointer: ImmPointer[Float32, _]) -> Outputs:
    return pointer.unsafe_mut_cast[True]().unsafe_origin_cast[
        MutUntrackedOrigin
    ]()
