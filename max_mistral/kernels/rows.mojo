"""What some rows of queries make of a span's keys: scores, weights and sums of values.

Sums are float32; queries and weights are too, unless they are `rounded` to bfloat16.
Of keys and values in codes, scores and weights are multiplied by the scales.
"""

from std.math import ceildiv, exp
from std.sys.intrinsics import PrefetchOptions, prefetch

from .kv_cache import KEYS, Cache, in_word
from .softmax import NONE, W, Lanes, Reads, Writes, padded
from .words import add_products

comptime Words = SIMD[DType.uint32, W]
comptime ReadsWords = ImmPointer[UInt32, _]

# Keys of a span.
comptime SPAN = 256
# Rows of a tile, and sums of values that it has at a time: AVX2 has 16 registers.
comptime MOST_ROWS = 4 if W == 8 else 8
comptime SUMS = 2 * MOST_ROWS
# What is fetched goes into the second level of cache: the first would be full too soon.
comptime AHEAD = PrefetchOptions().for_read().medium_locality()


@fieldwise_init
struct Keys[dtype: DType, origin: ImmOrigin, table: ImmOrigin](ImplicitlyCopyable):
    """Some of a request's keys of one head, and their values."""

    var cache: Cache[Self.dtype, Self.origin, Self.table]
    var head: Int
    var begin: Int
    """The first, a multiple of `KEYS`."""
    var end: Int
    var seen_end: Int
    """The end of those that the tile's tokens see, in this span or a later one."""

    def page_end(self, at: Int) -> Int:
        """The end of those in the page of a key."""
        var size = self.cache.page_size
        return min((at // size + 1) * size, self.end)

    def count(self) -> Int:
        """How many there are."""
        return self.end - self.begin

    def copy_value_scales(self, to: Writes):
        """Writes the scales of values in codes, and zeros up to a whole vector."""
        var scales = self.cache.blocks.unsafe_bitcast[Float32]()
        var start = self.begin
        while start < self.end:
            var stop = self.page_end(start)
            var at = self.cache.value_scale(start, self.head)
            for i in range(stop - start):
                var scale = scales.unsafe_load(at + i)
                to.unsafe_store(start - self.begin + i, scale)
            start = stop
        for i in range(self.count(), ceildiv(self.count(), W) * W):
            to.unsafe_store(i, 0)


@inline(.always)
def scores_of[
    dtype: DType, //, head_dim: Int, rounded: Bool, MR: Int, ahead: Bool
](
    scores: Writes,
    queries: ReadsWords,
    query: Array[Int, MR],
    keys: Keys[dtype, _, _],
    scale: Float32,
):
    """Writes the scores of `MR` rows, `[MR][SPAN]`.

    Parameters:
        dtype: Of keys and values.
        head_dim: Lanes of a head.
        rounded: Whether queries are bfloat16.
        MR: How many rows.
        ahead: Whether to fetch their values.

    Args:
        scores: Where to.
        queries: All rows' queries.
        query: Where in it these rows' are.
        keys: At most `SPAN`.
        scale: What a score is multiplied by.
    """
    comptime numbers = in_word[dtype]()
    comptime words = head_dim // numbers
    var start = keys.begin
    while start < keys.end:
        var stop = keys.page_end(start)
        var at = keys.cache.step(start, keys.head, head_dim) // numbers
        var page = keys.cache.blocks.unsafe_bitcast[UInt32]().unsafe_offset(at)
        var out = scores.unsafe_offset(start - keys.begin)
        var scales = keys.cache.blocks.unsafe_bitcast[Float32]().unsafe_offset(
            keys.cache.key_scale(start, keys.head)
        )

        var values = keys.cache.values_offset() // numbers

        @inline(.always)
        def some[vectors: Int](first: Int) {imm}:
            var dots = Array[Lanes, MR * vectors](fill=0)
            for i in range(words):
                comptime for v in range(vectors):
                    var key = first + v * W
                    var at = key // KEYS * KEYS * words + key % KEYS + i * KEYS
                    var k = page.unsafe_load[width=W](at)
                    comptime if ahead:
                        prefetch[AHEAD](page.unsafe_offset(at + values))
                    comptime for m in range(MR):
                        dots[m * vectors + v] = add_products[dtype, rounded](
                            dots[m * vectors + v],
                            k,
                            queries.unsafe_offset(query[m]),
                            i,
                        )
            comptime for v in range(vectors):
                var by = Lanes(scale)
                comptime if dtype == .int8:
                    by *= scales.unsafe_load[width=W](first + v * W)
                comptime for m in range(MR):
                    out.unsafe_store(
                        m * SPAN + first + v * W, dots[m * vectors + v] * by
                    )

        var count = stop - start
        var first = 0
        while first + W < count:
            some[2](first)
            first += 2 * W
        if first < count:
            some[1](first)
        start = stop


@inline(.always)
def weigh[
    head_dim: Int, rounded: Bool, coded: Bool
](
    row: Writes,
    state: Writes,
    first: Int,
    end: Int,
    count: Int,
    value_scales: Reads,
):
    """Makes weights of a row's scores, their exponentials; its state knows the largest
    score and the sum.

    Parameters:
        head_dim: Lanes of a head.
        rounded: Whether to round the weights to bfloat16.
        coded: Whether to multiply them by `value_scales`, but not their sum.

    Args:
        row: `[SPAN]` scores; if `rounded` the weights are bfloat16.
        state: The row's.
        first: The first key that it sees.
        end: The end of the keys that it sees.
        count: How many keys there are.
        value_scales: As `copy_value_scales` writes them.
    """
    for j in range(0, min(first, count)):
        row.unsafe_store(j, NONE)
    for j in range(max(0, end), ceildiv(count, W) * W):
        row.unsafe_store(j, NONE)
    var most = Lanes(NONE)
    for j in range(0, count, W):
        most = max(most, row.unsafe_load[width=W](j))
    var largest = most.reduce_max()
    var total = Lanes(0)
    for j in range(0, count, W):
        var p = Lanes(0)
        if first < end:
            var scores = row.unsafe_load[width=W](j)
            # With AVX-512 the exponential of -infinity is 2^-127, not 0.
            p = scores.eq(NONE).select(Lanes(0), exp(scores - largest))
        var weight = p
        comptime if coded:
            weight *= value_scales.unsafe_load[width=W](j)
        comptime if rounded:
            var narrow = weight.cast[.bfloat16]()
            row.unsafe_bitcast[BFloat16]().unsafe_store(j, narrow)
            comptime if not coded:
                p = narrow.cast[.float32]()
        else:
            row.unsafe_store(j, weight)
        total += p
    state.unsafe_store(padded(head_dim), largest)
    state.unsafe_store(padded(head_dim) + 1, total.reduce_add())


@inline(.always)
def weighted_values[
    dtype: DType, //, head_dim: Int, rounded: Bool, MR: Int, ahead: Bool
](
    states: Writes,
    state: Array[Int, MR],
    weights: ReadsWords,
    keys: Keys[dtype, _, _],
):
    """Writes the sums of values times weights of `MR` rows.

    Parameters:
        dtype: Of keys and values.
        head_dim: Lanes of a head.
        rounded: Whether weights are bfloat16.
        MR: How many rows.
        ahead: Whether to fetch the next span's keys.

    Args:
        states: All rows' states.
        state: Where in it these rows' are.
        weights: `[MR][SPAN]`.
        keys: Those that the values belong to.
    """
    comptime numbers = in_word[dtype]()
    comptime parts = padded(head_dim) // W
    comptime wide = min(4, SUMS // MR)
    comptime for block in range(0, parts, wide):
        comptime vectors = min(wide, parts - block)
        var sums = Array[Lanes, MR * vectors](fill=0)
        var start = keys.begin
        while start < keys.end:
            var stop = keys.page_end(start)
            var at = keys.cache.step(start, keys.head, head_dim)
            at = (at + keys.cache.values_offset()) // numbers
            var page = keys.cache.blocks.unsafe_bitcast[UInt32]().unsafe_offset(at)
            # Of the last span its own keys, which are near.
            var later = start + SPAN if start + SPAN < keys.seen_end else start
            var next = keys.cache.blocks.unsafe_bitcast[UInt32]().unsafe_offset(
                keys.cache.step(later, keys.head, head_dim) // numbers
            )
            comptime in_row = 2 if rounded else 1
            var own = weights.unsafe_offset((start - keys.begin) // in_row)

            @inline(.always)
            def add[whole: Bool](j: Int) {mut sums, imm}:
                comptime for i in range(vectors):
                    comptime lane = (block + i) * W
                    var at = j * head_dim + lane
                    var v = Words(0)
                    comptime if lane + W <= head_dim:
                        v = page.unsafe_load[width=W](at)
                    else:  # what follows is not this head's
                        comptime for k in range(head_dim - lane):
                            v[k] = page.unsafe_load(at + k)
                    comptime if not whole and dtype == .bfloat16:
                        v &= 0xFFFF  # nobody has written the word's other number
                    comptime if ahead:
                        prefetch[AHEAD](next.unsafe_offset(at))
                    comptime for m in range(MR):
                        sums[m * vectors + i] = add_products[dtype, rounded](
                            sums[m * vectors + i],
                            v,
                            own.unsafe_offset(m * SPAN),
                            j,
                        )

            var count = stop - start
            for j in range(count // numbers):
                add[True](j)
            if count % numbers != 0:
                add[False](count // numbers)
            start = stop
        comptime for m in range(MR):
            comptime for i in range(vectors):
                states.unsafe_store(
                    state[m] + (block + i) * W, sums[m * vectors + i]
                )
