"""A CPU's KV cache in NumPy: what ``kernels/kv_cache.mojo`` holds, and where."""

import numpy as np
from max.dtype import DType

KEYS = 16  # whose words alternate


def mixed(heads, dtype):
    """Lanes as a cache in int8 has those of keys; float32 ``[..., head_dim]``."""
    if dtype != DType.int8:
        return heads
    blocks, count = mixing(heads)
    for _ in range(int(np.log2(count))):
        first, second = blocks[..., 0::2], blocks[..., 1::2]
        blocks = np.concatenate([first + second, first - second], -1)
    return blocks.reshape(heads.shape)


def mixing(heads):
    """Lanes that are mixed with each other, ``[..., blocks, count]``; and ``count``."""
    count = min(128, heads.shape[-1] & -heads.shape[-1])
    return heads.reshape(*heads.shape[:-1], -1, count), count


def encoded(heads):
    """Codes of -127 to 127, and their scales, float32 ``[..., 1]``."""
    scale = np.abs(heads).max(-1, keepdims=True) / np.float32(127)
    inverse = (np.float32(127) / np.abs(heads).max(-1, keepdims=True)).astype(float)
    with np.errstate(invalid="ignore"):  # what is not a number has any code
        return np.rint(heads * inverse).astype(np.int64), scale


def to_bfloat16(numbers, dtype):
    """To the nearest that the cache has, ties to even, as float32."""
    if dtype == DType.float32:
        return numbers
    if dtype == DType.int8:
        codes, scale = encoded(numbers)
        return codes.astype(np.float32) * scale
    bits = numbers.view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


def stored(blocks, dtype):
    """The numbers as the cache holds them, in the order of ``kv_cache.mojo``.

    ``[pages, 2, layers, page_size, kv_heads, head_dim]``, of the same shape after; in
    int8 a head is wider by its scale.
    """
    words = 1
    if dtype == DType.bfloat16:  # the upper half of float32
        bits = to_bfloat16(blocks, dtype).view(np.uint32)
        blocks, words = (bits >> 16).astype(np.uint16), 2
    if dtype == DType.int8:
        codes, scale = encoded(blocks)
        blocks, words = (np.abs(codes) | (codes < 0) << 7).astype(np.uint8), 4
    pages, _, layers, page_size, heads, head_dim = blocks.shape
    # [pages, layers, heads, page_size, head_dim]
    keys, values = blocks.transpose(1, 0, 2, 4, 3, 5)
    shape = pages, layers, heads, page_size // KEYS, KEYS, head_dim // words, words
    keys = keys.reshape(shape).swapaxes(4, 5)
    shape = pages, layers, heads, page_size // words, words, head_dim
    values = values.reshape(shape).swapaxes(4, 5)
    if dtype == DType.int8:
        keys, values = in_halves(keys), in_halves(values)
    both = [part.reshape(pages, layers, -1) for part in (keys, values)]
    if dtype == DType.int8:
        # [pages, 2, layers, heads, page_size], behind all codes.
        scales = scale[..., 0].astype(np.float32).swapaxes(3, 4)
        for i, part in enumerate(both):
            behind = np.ascontiguousarray(scales[:, i]).view(np.uint8)
            both[i] = np.concatenate([part, behind.reshape(pages, layers, -1)], -1)
    both = [part.reshape(pages, layers, page_size, heads, -1) for part in both]
    return np.ascontiguousarray(np.stack(both, axis=1))


def in_halves(words):
    """Words of four codes, the first two of four words before their others."""
    # [..., 4 words, 2 halves, 2] -> [..., 2 halves, 4 words, 2]
    return words.reshape(-1, 4, 2, 2).swapaxes(1, 2).reshape(words.shape)


def stored_first(heads):
    """The codes of a head's first key and of its first value."""
    keys, values = heads.reshape(2, -1)
    head_dim = heads.shape[-1]
    # [head_dim / 4, 16 keys / 4, 2, 4 keys, 2] and [.., lanes / 4, 2, 4 lanes, 2]
    key = keys[: KEYS * head_dim].reshape(head_dim // 4, -1, 2, 4, 2)[:, 0, :, 0]
    value = values[: 4 * head_dim].reshape(-1, 2, 4, 2)[:, 0, :, 0]
    return np.concatenate([key.ravel(), value.ravel()])
