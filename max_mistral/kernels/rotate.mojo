"""A step's queries and keys rotated, its keys and values put into the cache.

Rotary embeddings are of Su et al., https://arxiv.org/abs/2104.09864; lanes are
paired as HF checkpoints have them, `i` with `i + head_dim / 2`.
"""

from .kv_cache import Cache
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
    dtype: DType, //, head_dim: Int
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
        queries: Its queries, rotated and scaled, `[heads, head_dim]`.
        blocks: What `cache` reads, to write its keys and values to.
        cache: Where those are.
        qkv: Queries, keys and values, `[heads + 2 * kv_heads, head_dim]`.
        turns: Cosines and sines of its position, `[head_dim / 2, 2]`.
        heads: Heads of queries.
        at: Its position.
        scale: What its queries are multiplied by.
    """
    for head in range(heads):
        _rotate[head_dim](
            queries.unsafe_offset(head * head_dim),
            qkv.unsafe_offset(head * head_dim),
            turns,
            scale,
        )
    var keys = blocks.unsafe_offset(cache.offset(at))
    var new_keys = qkv.unsafe_offset(heads * head_dim)
    for i in range(0, cache.width, head_dim):
        _rotate[head_dim](
            keys.unsafe_offset(i), new_keys.unsafe_offset(i), turns, 1
        )
    var values = keys.unsafe_offset(cache.values_offset())
    var new_values = new_keys.unsafe_offset(cache.width)
    var k = 0
    while k + W <= cache.width:
        var v: Lanes = new_values.unsafe_load[width=W](k)
        values.unsafe_store(k, v.cast[dtype]())
        k += W
    while k < cache.width:
        values.unsafe_store(k, new_values.unsafe_load(k).cast[dtype]())
        k += 1
