"""Causal attention over MAX's paged KV cache.

A token's keys are taken in spans of fixed places, each with a softmax of its
own, and the spans are merged in order (Dao et al., "Flash-Decoding"). So a
token computes the same, bit for bit, in any batch and whoever computes its
spans.
"""

from .kv_cache import KEYS, Cache
from .rows import MOST_ROWS, SPAN, Keys, ReadsWords, scores_of, weigh, weighted_values
from .softmax import Writes, state_size

# Tokens whose queries meet a span's keys together.
comptime TILE = 8


def span[
    dtype: DType, //, head_dim: Int, rounded: Bool
](
    states: Writes,
    q: ReadsWords,
    cache: Cache[dtype, _, _],
    heads: Int,
    kv_begin: Int,
    kv_end: Int,
    tokens: Int,
    position: Int,
    window: Int,
    begin: Int,
    scale: Float32,
):
    """Writes some tokens' states, `[tokens, heads]`, of some heads and a span's keys.

    Args:
        states: Where to.
        q: Queries as `rotate_and_store` leaves them.
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
    comptime size = state_size(head_dim)
    var group = heads // (cache.width // head_dim)
    # Pages before it may have been given back.
    var from_key = max(begin, (position - window + 1) // KEYS * KEYS)
    var end = min(begin + SPAN, position + tokens)
    for kv_head in range(kv_begin, kv_end):
        var keys = Keys(cache, kv_head, from_key, end, position + tokens)
        var count = keys.count()
        comptime coded = dtype == .int8
        var of_values = Array[Float32, SPAN if coded else 1](uninitialized=True)
        var value_scales = of_values.unsafe_ptr()
        comptime if coded:
            keys.copy_value_scales(value_scales)

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
                query[m] = (token * heads + head) * head_dim
                first[m] = max(0, position + token - window + 1 - from_key)
                last[m] = min(count, position + token + 1 - from_key)

            @inline(.always)
            def run[ahead: Bool]() {imm}:
                var store = Array[Float32, MR * SPAN](uninitialized=True)
                var scores = store.unsafe_ptr()
                scores_of[head_dim, rounded, MR, ahead](
                    scores, q, query, keys, scale
                )
                comptime for m in range(MR):
                    weigh[head_dim, rounded, coded](
                        scores.unsafe_offset(m * SPAN),
                        states.unsafe_offset(state[m]),
                        first[m],
                        last[m],
                        count,
                        value_scales,
                    )
                var weights = scores.unsafe_bitcast[UInt32]()
                weighted_values[head_dim, rounded, MR, ahead](
                    states, state, weights, keys
                )

            # The first rows fetch for all.
            if row == 0:
                run[True]()
            else:
                run[False]()

        var row = 0
        comptime for step in range(4):
            comptime MR = MOST_ROWS >> step
            comptime if MR > 0:
                while row + MR <= tokens * group:
                    rows[MR](row)
                    row += MR
