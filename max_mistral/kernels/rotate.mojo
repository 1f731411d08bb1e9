"""A step's queries and keys rotated, its keys and values put into the cache.

Rotary embeddings are of Su et al., https://arxiv.org/abs/2104.09864; lanes are
paired as HF checkpoints have them, `i` with `i + head_dim / 2`.
"""

from .kv_cache import KEYS, Cache, in_word
from .softmax import W, Lanes, Reads, Writes


@inline(.always)
def _rotate[
    dtype: DType, //, head_dim: Int
](
    dst: MutPointer[Scalar[dtype], _],
    src: Reads,
    turns: Reads,
    scale: Float32,
):
    """Writes one head, rotated and then multiplied by `scale`.

    `turns` are the cosine and the sine of each pair's angle, `[head_dim / 2, 2]`.
    """
    comptime half = head_dim // 2
    comptime whole = half // W * W

    @inline(.always)
    def pairs[
        width: Int
    ](
        i: Int,
        cos: SIMD[DType.float32, width],
        sin: SIMD[DType.float32, width],
    ) {imm}:
        var x = src.unsafe_load[width=width](i)
        var y = src.unsafe_load[width=width](i + half)
        var turned_x = (x * cos - y * sin) * scale
        var turned_y = (y * cos + x * sin) * scale
        dst.unsafe_store(i, turned_x.cast[dtype]())
        dst.unsafe_store(i + half, turned_y.cast[dtype]())

    comptime for i in range(0, whole, W):
        var cos, sin = turns.unsafe_load[width=2 * W](2 * i).deinterleave()
        pairs[W](i, rebind[Lanes](cos), rebind[Lanes](sin))
    comptime for i in range(whole, half):
        pairs[1](i, turns.unsafe_load(2 * i), turns.unsafe_load(2 * i + 1))


def rotate_and_store[
    dtype: DType, //, head_dim: Int, rounded: Bool
](
    queries: Writes,
    blocks: MutPointer[Scalar[dtype], _],
    cache: Cache[dtype, _, _],
    qkv: Reads,
    turns: Reads,
    heads: Int,
    at: Int,
    scale: Float32,
):
    """Takes one token's projections apart.

    Args:
        queries: Its queries, rotated and scaled, `[heads, head_dim]`; if `rounded`
            bfloat16, in the first half of each head's room.
        blocks: What `cache` reads, to write its keys and values to.
        cache: Where those are.
        qkv: Queries, keys and values, `[heads + 2 * kv_heads, head_dim]`.
        turns: Cosines and sines of its position, `[head_dim / 2, 2]`.
        heads: Heads of queries.
        at: Its position.
        scale: What its queries are multiplied by.
    """
    comptime query_dtype = DType.bfloat16 if rounded else DType.float32
    for head in range(heads):
        _rotate[head_dim](
            queries.unsafe_offset(head * head_dim).unsafe_bitcast[
                Scalar[query_dtype]
            ](),
            qkv.unsafe_offset(head * head_dim),
            turns,
            scale,
        )
    comptime numbers = in_word[dtype]()
    comptime words = head_dim // numbers
    var turned = Array[UInt32, words](uninitialized=True)
    var key = turned.unsafe_ptr()
    var new_keys = qkv.unsafe_offset(heads * head_dim)
    var new_values = new_keys.unsafe_offset(cache.width)
    for head in range(cache.width // head_dim):
        _rotate[head_dim](
            key.unsafe_bitcast[Scalar[dtype]](),
            new_keys.unsafe_offset(head * head_dim),
            turns,
            1,
        )
        var keys = blocks.unsafe_offset(cache.key(at, head, head_dim))
        for i in range(words):
            keys.unsafe_bitcast[UInt32]().unsafe_store(
                i * KEYS, key.unsafe_load(i)
            )
        var values = blocks.unsafe_offset(cache.value(at, head, head_dim))
        for i in range(head_dim):
            var value = new_values.unsafe_load(head * head_dim + i)
            values.unsafe_store(i * numbers, value.cast[dtype]())
