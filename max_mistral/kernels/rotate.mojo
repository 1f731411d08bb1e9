"""A step's queries and keys rotated, its keys and values put into the cache.

Rotary embeddings are of Su et al., https://arxiv.org/abs/2104.09864; lanes are
paired as HF checkpoints have them, `i` with `i + head_dim / 2`.
"""

from .kv_cache import KEYS, Cache, in_word, number_at, word_at
from .kv_codes import encode, mix, mixed_lanes
from .softmax import W, Lanes, Reads, Writes


@inline(.always)
def _rotate[
    dtype: DType, //, head_dim: Int
](
    dst: MutPointer[Scalar[dtype], _],
    src: Reads,
    freqs_cis: Reads,
    scale: Float32,
):
    """Writes one head, rotated and then multiplied by `scale`.

    `freqs_cis` are the cosine and the sine of each pair's angle, `[head_dim / 2, 2]`.
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
        var cos, sin = freqs_cis.unsafe_load[width=2 * W](2 * i).deinterleave()
        pairs[W](i, rebind[Lanes](cos), rebind[Lanes](sin))
    comptime for i in range(whole, half):
        pairs[1](i, freqs_cis.unsafe_load(2 * i), freqs_cis.unsafe_load(2 * i + 1))


def rotate_and_store[
    dtype: DType, //, head_dim: Int, rounded: Bool
](
    queries: Writes,
    blocks: MutPointer[Scalar[dtype], _],
    cache: Cache[dtype, _, _],
    qkv: Reads,
    freqs_cis: Reads,
    heads: Int,
    at: Int,
    scale: Float32,
):
    """Takes one token's projections apart.

    Args:
        queries: Its queries, rotated and scaled, `[heads, head_dim]`; if `rounded`
            bfloat16, in the first half of each head's room. Their lanes are mixed if
            the keys' are.
        blocks: What `cache` reads, to write its keys and values to.
        cache: Where those are.
        qkv: Queries, keys and values, `[heads + 2 * kv_heads, head_dim]`.
        freqs_cis: Cosines and sines of its position, `[head_dim / 2, 2]`.
        heads: Heads of queries.
        at: Its position.
        scale: What its queries are multiplied by.
    """
    comptime query_dtype = DType.bfloat16 if rounded else DType.float32
    for head in range(heads):
        _store_query[head_dim, dtype == .int8](
            queries.unsafe_offset(head * head_dim).unsafe_bitcast[
                Scalar[query_dtype]
            ](),
            qkv.unsafe_offset(head * head_dim),
            freqs_cis,
            scale,
        )
    var new_keys = qkv.unsafe_offset(heads * head_dim)
    var new_values = new_keys.unsafe_offset(cache.width)
    for head in range(cache.width // head_dim):
        var new_key = new_keys.unsafe_offset(head * head_dim)
        var new_value = new_values.unsafe_offset(head * head_dim)
        comptime if dtype == .int8:
            _store_codes[head_dim](
                blocks, cache, new_key, new_value, freqs_cis, head, at
            )
        else:
            _store_numbers[head_dim](
                blocks, cache, new_key, new_value, freqs_cis, head, at
            )


@inline(.always)
def _store_query[
    dtype: DType, //, head_dim: Int, mixed: Bool
](query: MutPointer[Scalar[dtype], _], new: Reads, freqs_cis: Reads, scale: Float32):
    comptime if mixed:
        # Mixing both makes their products `mixed_lanes` times as large.
        comptime count = mixed_lanes(head_dim)
        var lanes = Array[Float32, head_dim](uninitialized=True)
        var turned = lanes.unsafe_ptr()
        _rotate[head_dim](turned, new, freqs_cis, scale)
        mix[head_dim](turned, 1 / Float32(count))
        for begin in range(0, head_dim, count):
            var some = turned.unsafe_load[width=count](begin)
            query.unsafe_store(begin, some.cast[dtype]())
    else:
        _rotate[head_dim](query, new, freqs_cis, scale)


@inline(.always)
def _store_numbers[
    dtype: DType, //, head_dim: Int
](
    blocks: MutPointer[Scalar[dtype], _],
    cache: Cache[dtype, _, _],
    new_key: Reads,
    new_value: Reads,
    freqs_cis: Reads,
    head: Int,
    at: Int,
):
    var lanes = Array[Float32, head_dim](uninitialized=True)
    var key = lanes.unsafe_ptr().unsafe_bitcast[UInt32]()
    _rotate[head_dim](key.unsafe_bitcast[Scalar[dtype]](), new_key, freqs_cis, 1)
    var keys = blocks.unsafe_offset(cache.key(at, head, head_dim))
    for i in range(head_dim // in_word[dtype]()):
        keys.unsafe_bitcast[UInt32]().unsafe_store(i * KEYS, key.unsafe_load(i))
    var values = blocks.unsafe_offset(cache.value(at, head, head_dim))
    for i in range(head_dim):
        values.unsafe_store(word_at[dtype](i), new_value.unsafe_load(i).cast[dtype]())


@inline(.always)
def _store_codes[
    dtype: DType, //, head_dim: Int
](
    blocks: MutPointer[Scalar[dtype], _],
    cache: Cache[dtype, _, _],
    new_key: Reads,
    new_value: Reads,
    freqs_cis: Reads,
    head: Int,
    at: Int,
):
    var lanes = Array[Float32, head_dim](uninitialized=True)
    var key = lanes.unsafe_ptr()
    _rotate[head_dim](key, new_key, freqs_cis, 1)
    mix[head_dim](key, 1)
    var store = Array[UInt8, head_dim](uninitialized=True)
    var codes = store.unsafe_ptr()
    var scales = blocks.unsafe_bitcast[Float32]()
    scales.unsafe_store(cache.key_scale(at, head), encode[head_dim](codes, key))
    var keys = blocks.unsafe_offset(cache.key(at, head, head_dim))
    for i in range(head_dim):
        keys.unsafe_bitcast[UInt8]().unsafe_store(
            i // 4 * 4 * KEYS + number_at[dtype](i % 4), codes.unsafe_load(i)
        )
    var value_scale = encode[head_dim](codes, new_value)
    scales.unsafe_store(cache.value_scale(at, head), value_scale)
    var values = blocks.unsafe_offset(cache.value(at, head, head_dim))
    for i in range(head_dim):
        values.unsafe_bitcast[UInt8]().unsafe_store(
            word_at[dtype](i), codes.unsafe_load(i)
        )
