"""Causal attention over MAX's paged KV cache, computed in float32.

A token's keys are taken in spans of fixed places, each with a softmax of its
own, and the spans are merged in order (Dao et al., "Flash-Decoding"). So a
token computes the same, bit for bit, in any batch and whoever computes its
spans.
"""

from std.math import ceildiv, exp, fma
from std.sys.intrinsics import PrefetchOptions, prefetch

from .kv_cache import Cache, copy_rows, load
from .softmax import NONE, W, Lanes, Reads, Writes, padded, rescale, state_size

# Keys of a span, and of a step, whose keys and values stay in the cache.
comptime SPAN = 256
comptime STEP = 32
# Tokens whose queries meet a step's keys together.
comptime TILE = 8
# Into the second level of cache: the first would be full too soon.
comptime AHEAD = PrefetchOptions().for_read().low_locality()


@inline(.always)
def _sums(vectors: Array[Lanes, W]) -> Lanes:
    """The sums of each vector's lanes."""
    var v = vectors.copy()
    comptime for level in range(4):
        comptime half = W >> (level + 1)
        comptime for i in range(half):
            var pairs = v[2 * i].join(v[2 * i + 1]).deinterleave()
            v[i] = rebind[Lanes](pairs[0] + pairs[1])
    return v[0]


@inline(.always)
def _tile[
    dtype: DType, //, head_dim: Int, MR: Int, ahead: Bool
](
    states: Writes,
    state: Array[Int, MR],
    queries: Reads,
    query: Array[Int, MR],
    first: Array[Int, MR],
    end: Array[Int, MR],
    keys: ImmPointer[Scalar[dtype], _],
    values: ImmPointer[Scalar[dtype], _],
    stride: Int,
    next: Int,
    count: Int,
    scale: Float32,
):
    """`MR` rows by at most `STEP` keys.

    Parameters:
        dtype: Of keys and values.
        head_dim: Lanes of a head.
        MR: How many rows.
        ahead: Whether to fetch the keys and values of the step after this one.

    Args:
        states: All rows' states.
        state: Where in it these rows' are.
        queries: All rows' queries.
        query: Where in it these rows' are.
        first: The first key that each row sees.
        end: The end of the keys that each row sees.
        keys: `count` keys, `stride` lanes apart, each `padded(head_dim)` wide.
        values: The same of values.
        stride: Lanes from one key to the next.
        next: Lanes from here to the next step's keys.
        count: How many keys.
        scale: What a score is multiplied by.
    """
    comptime width = padded(head_dim)
    comptime parts = width // W
    comptime KR = W // MR
    var scores = Array[Float32, MR * STEP](fill=NONE)
    var s = scores.unsafe_ptr()
    for j in range(0, count, KR):
        var dots = Array[Lanes, W](fill=0)
        for i in range(parts):
            var k = Array[Lanes, KR](fill=0)
            comptime for c in range(KR):
                var key = min(j + c, count - 1) * stride + i * W
                k[c] = load(keys, key)
                comptime if ahead:
                    prefetch[AHEAD](keys.unsafe_offset(key + next))
            comptime for m in range(MR):
                var q = queries.unsafe_load[width=W](query[m] + i * W)
                comptime for c in range(KR):
                    dots[m * KR + c] = fma(q, k[c], dots[m * KR + c])
        var found = _sums(dots) * scale
        comptime for m in range(MR):
            s.unsafe_store(m * STEP + j, found.slice[KR, offset=m * KR]())
    comptime for m in range(MR):
        var row = s.unsafe_offset(m * STEP)
        var own = states.unsafe_offset(state[m])
        for j in range(0, min(first[m], count)):
            row.unsafe_store(j, NONE)
        for j in range(max(0, end[m]), ceildiv(count, W) * W):
            row.unsafe_store(j, NONE)
        if first[m] < end[m]:
            var most = Lanes(NONE)
            for j in range(0, count, W):
                most = max(most, row.unsafe_load[width=W](j))
            var largest = max(most.reduce_max(), own.unsafe_load(width))
            rescale[head_dim](own, largest)
        var largest = own.unsafe_load(width)
        var total = Lanes(0)
        for j in range(0, count, W):
            var p = Lanes(0)
            if first[m] < end[m]:
                p = exp(row.unsafe_load[width=W](j) - largest)
            total += p
            row.unsafe_store(j, p)
        var normalizer = own.unsafe_load(width + 1)
        own.unsafe_store(width + 1, normalizer + total.reduce_add())
    comptime for block in range(0, parts, 4):
        comptime vectors = min(4, parts - block)
        var sums = Array[Lanes, MR * vectors](fill=0)
        comptime for m in range(MR):
            comptime for i in range(vectors):
                sums[m * vectors + i] = states.unsafe_load[width=W](
                    state[m] + (block + i) * W
                )
        for j in range(count):
            comptime for i in range(vectors):
                var v = load(values, j * stride + (block + i) * W)
                comptime if ahead:
                    prefetch[AHEAD](
                        values.unsafe_offset(
                            j * stride + (block + i) * W + next
                        )
                    )
                comptime for m in range(MR):
                    var p = Lanes(s.unsafe_load(m * STEP + j))
                    sums[m * vectors + i] = fma(p, v, sums[m * vectors + i])
        comptime for m in range(MR):
            comptime for i in range(vectors):
                states.unsafe_store(
                    state[m] + (block + i) * W, sums[m * vectors + i]
                )


def span[
    head_dim: Int
](
    states: Writes,
    q: Reads,
    cache: Cache,
    heads: Int,
    kv_begin: Int,
    kv_end: Int,
    tokens: Int,
    position: Int,
    window: Int,
    begin: Int,
    scale: Float32,
):
    """Adds some heads of a span's keys to some tokens' states, `[tokens, heads]`.

    Args:
        states: As `clear` leaves them.
        q: `[tokens, heads, padded(head_dim)]`.
        cache: Where the keys are.
        heads: Heads of queries.
        kv_begin: The first head of keys.
        kv_end: The end of the heads of keys.
        tokens: How many tokens, at most `TILE`.
        position: The first token's.
        window: Keys that a token sees, itself included.
        begin: The span's first key.
        scale: What a score is multiplied by.
    """
    comptime width = padded(head_dim)
    comptime size = state_size(head_dim)
    comptime max_mr = W // 4
    var packed = Array[Float32, 2 * STEP * width](uninitialized=True)
    var keys = packed.unsafe_ptr()
    var values = keys.unsafe_offset(STEP * width)
    var group = heads // (cache.width // head_dim)
    var end = min(begin + SPAN, position + tokens)
    var start = max(begin, (position - window + 1) // STEP * STEP)
    while start < end:
        var page_end = (start // cache.page_size + 1) * cache.page_size
        var stop = min(min(start // STEP * STEP + STEP, page_end), end)
        var count = stop - start
        var next = 0
        if stop < end:
            next = cache.offset(stop) - cache.offset(start)
        # One token reads the cache where it is; more read a copy that is dense.
        var in_place = tokens == 1 and head_dim % W == 0
        for kv_head in range(kv_begin, kv_end):
            var k = cache.blocks.unsafe_offset(
                cache.offset(start) + kv_head * head_dim
            )
            var v = k.unsafe_offset(cache.values_offset())
            if not in_place:
                copy_rows[head_dim](keys, k, cache.width, count)
                copy_rows[head_dim](values, v, cache.width, count)

            @inline(.always)
            def rows[MR: Int](row: Int) {imm}:
                var state = Array[Int, MR](fill=0)
                var query = Array[Int, MR](fill=0)
                var first = Array[Int, MR](fill=0)
                var last = Array[Int, MR](fill=0)
                comptime for m in range(MR):
                    var token = (row + m) // group
                    var head = kv_head * group + (row + m) % group
                    state[m] = (token * heads + head) * size
                    query[m] = (token * heads + head) * width
                    first[m] = max(0, position + token - window + 1 - start)
                    last[m] = min(count, position + token + 1 - start)

                @inline(.always)
                def run[
                    dtype: DType, //, ahead: Bool
                ](
                    k: ImmPointer[Scalar[dtype], _],
                    v: ImmPointer[Scalar[dtype], _],
                    stride: Int,
                ) {imm}:
                    _tile[head_dim, MR, ahead](
                        states,
                        state,
                        q,
                        query,
                        first,
                        last,
                        k,
                        v,
                        stride,
                        next,
                        count,
                        scale,
                    )

                if not in_place:
                    run[False](keys, values, width)
                elif row == 0:
                    run[True](k, v, cache.width)
                else:
                    run[False](k, v, cache.width)

            var row = 0
            comptime for step in range(3):
                comptime MR = max_mr >> step
                comptime if MR > 0:
                    while row + MR <= tokens * group:
                        rows[MR](row)
                        row += MR
        start = stop
