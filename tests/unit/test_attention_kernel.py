"""The CPU attention kernel against float64, over pages, windows and batches.

All shapes in one graph, which is compiled once.
"""

import sys

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType, ops

from max_mistral import kernels
from max_mistral.workarounds.graph_cache import find_at_once
from tests.harness import root_mean_square
from tests.kv_cache_reference import mixed, mixing, stored, stored_first, to_bfloat16

EPS = float(np.finfo(np.float32).eps)
LAYERS, LAYER, SCALE = 2, 1, 0.1
# Name: heads, KV heads, head_dim, page size, window. 20 is no whole number of
# vectors, 128 are more than a tile's sums hold; groups of 8, 4, 3, 2 and 1 rows take
# every tile there is.
SHAPES = {
    "grouped": (8, 1, 64, 128, None),
    "odd": (6, 2, 20, 128, None),
    "windowed": (4, 4, 128, 128, 100),
    "small_pages": (4, 2, 32, 48, 3),
    "five_vectors": (8, 2, 80, 128, None),
}
# What the cache is, and whether queries and weights of values are rounded to bfloat16.
DTYPES = [
    (DType.float32, False),
    (DType.bfloat16, False),
    (DType.bfloat16, True),
    (DType.int8, False),
    (DType.int8, True),
]
CASES = [(name, *dtype) for name in SHAPES for dtype in DTYPES]
# Tokens of this step and tokens cached before, by request. 300 and 513 are
# beyond a span of keys; 384 fill their pages, whatever size those have.
BATCH = [(1, 0), (1, 300), (13, 0), (9, 500), (1, 513), (2, 62), (1, 383)]


# Whose queries are scaled by position.
SCALED = {"windowed"}


def few_bits(rng, shape, largest=2):
    """Numbers that bfloat16 has too, and whose products add up without an error."""
    ends = -32 * largest, 32 * largest + 1
    return (rng.integers(*ends, shape) / 32).astype(np.float32)


def inputs(name):
    heads, kv_heads, head_dim, page_size, _ = SHAPES[name]
    rng = np.random.default_rng(len(name))
    tokens = sum(new for new, _ in BATCH)
    qkv = few_bits(rng, (tokens, (heads + 2 * kv_heads) * head_dim))
    need = [-(-(new + cached) // page_size) for new, cached in BATCH]
    shape = (sum(need) + 1, 2, LAYERS, page_size, kv_heads, head_dim)
    blocks = few_bits(rng, shape)
    # Each request's pages are anywhere, the last one's last at the very end; the
    # rest of its row is the null page.
    table = np.zeros((len(BATCH), max(need)), np.uint32)
    pages = [sum(need), *(rng.permutation(sum(need) - 1) + 1)]
    for row, count in zip(table[::-1], need[::-1], strict=True):
        row[:count] = pages[:count][::-1]
        del pages[:count]
    positions = max(new + cached for new, cached in BATCH)
    freqs = few_bits(rng, (positions, head_dim), 1)
    scales = few_bits(rng, tokens, 1) if name in SCALED else np.ones(1, np.float32)
    return qkv, freqs, scales, blocks, table


def rotated(heads, freqs):
    """HF's ``apply_rotary_pos_emb``, of ``[tokens, heads, head_dim]``."""
    cos, sin = freqs[:, None, 0::2], freqs[:, None, 1::2]
    x, y = np.split(heads, 2, axis=-1)
    return np.concatenate([x * cos - y * sin, y * cos + x * sin], -1)


def after(name, dtype):
    """A step's queries, rotated and scaled, and the cache after it."""
    heads, kv_heads, head_dim, page_size, _ = SHAPES[name]
    qkv, freqs, scales, blocks, table = inputs(name)
    # [tokens, heads + 2 * kv_heads, head_dim]
    qkv = qkv.reshape(len(qkv), -1, head_dim)
    queries, keys, values = np.split(qkv, [heads, heads + kv_heads], axis=1)
    at = np.concatenate([cached + np.arange(new) for new, cached in BATCH])
    request = np.repeat(np.arange(len(BATCH)), [new for new, _ in BATCH])
    pages, rows = table[request, at // page_size], at % page_size
    blocks[pages, 0, LAYER, rows] = mixed(rotated(keys, freqs[at]), dtype)
    blocks[pages, 1, LAYER, rows] = values
    queries = rotated(queries, freqs[at])
    if name in SCALED:
        queries *= scales[:, None, None]
    if dtype == DType.int8:
        queries = mixed(queries / np.float32(mixing(queries)[1]), dtype)
    return queries, blocks


def reference(name, dtype, rounded):
    """Attention in float64, and a bound on what float32 may differ by."""
    heads, kv_heads, head_dim, _, window = SHAPES[name]
    queries, blocks = after(name, dtype)
    blocks = to_bfloat16(blocks, dtype)
    if rounded:
        queries = to_bfloat16(queries.astype(np.float32), DType.bfloat16)
    table = inputs(name)[-1]
    found, at, largest = [], 0, 0.0
    for (new, cached), pages in zip(BATCH, table, strict=True):
        # [pages, 2, page_size, kv_heads, head_dim] -> [2, tokens, heads, head_dim]
        kv = blocks[pages][:, :, LAYER].swapaxes(0, 1).astype(np.float64)
        kv = kv.reshape(2, -1, kv_heads, head_dim)[:, : new + cached]
        keys, values = np.repeat(kv, heads // kv_heads, axis=2)
        scores = np.einsum("thd,khd->thk", queries[at : at + new], keys) * SCALE
        terms = np.einsum("thd,khd->thk", *map(np.abs, (queries[at : at + new], keys)))
        largest = max(largest, SCALE * terms.max())
        distance = cached + np.arange(new)[:, None] - np.arange(new + cached)
        seen = (distance >= 0) & (distance < (window or np.inf))
        scores = np.where(seen[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found.append(np.einsum("thk,khd->thd", weights, values))
        at += new
    # A score is a sum of head_dim products; its error is a weight's relative
    # error, in the sum of values and in the normalizer. Then sums over the keys.
    keys = max(new + cached for new, cached in BATCH)
    most = np.abs(blocks[:, 1]).max()
    bound = EPS * (2 * head_dim * largest + keys) * most
    if rounded:
        # Each weight is off by 2^-8 of itself at most, and so is their sum.
        bound += 2**-7 / (1 - 2**-8) * most
    return np.concatenate(found), bound


@pytest.fixture(scope="module")
def run():
    cpu = DeviceRef.CPU()
    types, outputs = [], []
    for name, dtype, _ in CASES:
        heads, kv_heads, head_dim, page_size, _ = SHAPES[name]
        row = (heads + 2 * kv_heads) * head_dim
        width = f"{name}_{dtype.name}_width"
        block = [f"{name}_pages", 2, LAYERS, page_size, kv_heads, width]
        types += [
            TensorType(DType.float32, [f"{name}_tokens", row], cpu),
            TensorType(DType.float32, [f"{name}_positions", head_dim], cpu),
            TensorType(DType.float32, [f"{name}_scales"], cpu),
            TensorType(DType.uint32, [f"{name}_ends"], cpu),
            BufferType(dtype, block, cpu),
            TensorType(DType.uint32, [f"{name}_batch"], cpu),
            TensorType(DType.uint32, [f"{name}_batch", f"{name}_most"], cpu),
            TensorType(DType.int64, [1], cpu),
        ]
    with Graph(
        "attention", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        values = list(graph.inputs)
        for i, (name, _, rounded) in enumerate(CASES):
            heads, _, head_dim, _, window = SHAPES[name]
            scalars = [
                ops.constant(LAYER, DType.uint32, device=cpu),
                ops.constant(SCALE, DType.float32, device=cpu),
            ]
            outputs += ops.inplace_custom(
                "mistral_attention",
                cpu,
                values[8 * i : 8 * i + 8] + scalars,
                [TensorType(DType.float32, [f"{name}_tokens", heads, head_dim], cpu)],
                parameters={
                    "head_dim": head_dim,
                    "window": window or 2**31,
                    "scaled": name in SCALED,
                    "rounded_attention": rounded,
                },
            )
        graph.output(*outputs)
    session = InferenceSession(devices=[CPU()])
    find_at_once(session)
    model = session.load(graph)
    pools = {}

    def run(requests, lay=lambda blocks: (blocks, -1), spoil=lambda inputs: None):
        """Runs some requests of the batch; returns each case's rows, by request.

        ``lay`` takes the cache's pages and returns them in memory of their own and
        how many numbers they lie apart. ``spoil`` may change a case's arrays.
        """
        chosen = [BATCH[i] for i in requests]
        ends = np.cumsum([0] + [new for new, _ in chosen]).astype(np.uint32)
        counts = [new for new, _ in BATCH]
        tokens = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        buffers = []
        for name, dtype, rounded in CASES:
            qkv, freqs, scales, blocks, table = inputs(name)
            rows = np.concatenate([np.arange(0), *(tokens[i] for i in requests)])
            pool, stride = lay(stored(blocks, dtype))
            arrays = {
                "qkv": qkv[rows],
                "freqs": freqs,
                "scales": scales[rows] if name in SCALED else scales,
                "ends": ends.copy(),
                "pool": pool,
                "lengths": np.array([cached for _, cached in chosen], np.uint32),
                "table": np.ascontiguousarray(table[requests]),
                "stride": np.array([stride], np.int64),
            }
            spoil(arrays)
            made = {key: Buffer.from_numpy(array) for key, array in arrays.items()}
            pools[name, dtype, rounded] = made["pool"]
            buffers += (made | {"pool": made["pool"].view(dtype)}).values()
        found = model.execute(*buffers)
        return {
            case: np.split(output.to_numpy(), ends[1:-1])
            for case, output in zip(CASES, found, strict=True)
        }

    run.pools = pools
    return run


@pytest.fixture(scope="module")
def together(run):
    return run(list(range(len(BATCH))))


@pytest.mark.parametrize(("name", "dtype", "rounded"), CASES)
def test_it_is_attention(together, name, dtype, rounded):
    want, bound = reference(name, dtype, rounded)
    found = together[name, dtype, rounded]
    error = np.abs(np.concatenate(found) - want).max()
    assert error <= bound, (error, bound)
    if rounded:
        # That bound is for errors that all add up. As each is as likely up as down,
        # they add up as the weighted values themselves do, which are as likely either:
        # 2^-8 of the output at most, and as much by the weights' sum.
        ends = np.cumsum([new for new, _ in BATCH])[:-1]
        for each, wanted in zip(found, np.split(want, ends), strict=True):
            usual = 2**-7 * root_mean_square(wanted)
            assert root_mean_square(each - wanted) <= usual
    # One key too many or too few would show.
    assert rounded or bound < 1 / min(513, SHAPES[name][-1] or 513)


def test_it_stores_this_steps_keys_and_values_and_nothing_else(run):
    run(list(range(len(BATCH))))
    for case in CASES:
        name, dtype, _ = case
        _, blocks = after(name, dtype)
        assert np.array_equal(run.pools[case].to_numpy(), stored(blocks, dtype))


def test_what_nobody_has_written_changes_nothing(run, together, monkeypatch):
    """Pages are used again, by requests that other requests' numbers must not reach."""

    def with_nan(name):
        qkv, freqs, scales, blocks, table = plain(name)
        *_, page_size, window = SHAPES[name]
        written = np.zeros(blocks.shape[:4], bool)
        for (_, cached), pages in zip(BATCH, table, strict=True):
            # MAX gives pages back that the next token does not see, and puts the null
            # page in their place.
            seen = max(0, cached + 1 - (window or np.inf)) // page_size
            at = np.arange(int(seen) * page_size, cached)
            written[pages[at // page_size], :, LAYER, at % page_size] = True
            pages[: int(seen)] = 0
        blocks[~written] = np.nan
        return qkv, freqs, scales, blocks, table

    plain = inputs
    monkeypatch.setattr(sys.modules[__name__], "inputs", with_nan)
    for case, rows in run(list(range(len(BATCH)))).items():
        assert all(map(np.array_equal, rows, together[case]))


def test_what_a_window_has_left_weighs_nothing(run, together, monkeypatch):
    """Not 2^-127 either: keys are read 16 at a time, also some that are not seen."""

    def with_much(name):
        qkv, freqs, scales, blocks, table = plain(name)
        *_, page_size, window = SHAPES[name]
        for (_, cached), pages in zip(BATCH, table, strict=True):
            at = np.arange(max(0, cached + 1 - (window or cached + 1)))
            blocks[pages[at // page_size], 1, LAYER, at % page_size] = 1e38
        return qkv, freqs, scales, blocks, table

    plain = inputs
    monkeypatch.setattr(sys.modules[__name__], "inputs", with_much)
    for case, rows in run(list(range(len(BATCH)))).items():
        assert all(map(np.array_equal, rows, together[case])), case


def test_scales_of_what_is_no_number(run):
    """Of the first request's token: a key, a value, and a head of zeros."""

    def spoil(arrays):
        heads, kv_heads, head_dim, _, _ = next(shapes)
        # [tokens, heads + 2 * kv_heads, head_dim]
        row = arrays["qkv"].reshape(len(arrays["qkv"]), -1, head_dim)[0]
        row[heads, 0], row[heads + kv_heads, -1] = np.nan, -np.inf
        if kv_heads > 1:
            row[heads + 1] = row[heads + kv_heads + 1] = 0

    shapes = iter([SHAPES[name] for name, *_ in CASES])
    run([0], spoil=spoil)
    for case in CASES:
        name, dtype, _ = case
        if dtype != DType.int8:
            continue
        _, kv_heads, head_dim, page_size, _ = SHAPES[name]
        pool = run.pools[case].to_numpy()
        parts = pool[inputs(name)[-1][0, 0], :, LAYER].reshape(2, -1)
        codes, scales = np.split(parts, [page_size * kv_heads * head_dim], axis=1)
        scales = np.ascontiguousarray(scales).view(np.float32)
        # [2, kv_heads, page_size]
        keys, values = scales.reshape(2, kv_heads, page_size)[:, :, 0]
        assert np.isnan(keys[0])
        assert not np.isfinite(values[0])
        if kv_heads > 1:
            assert keys[1] == values[1] == 0
            second = codes.reshape(2, kv_heads, page_size, head_dim)[:, 1]
            assert not (stored_first(second) & 0x7F).any()


@pytest.mark.parametrize("request_", range(len(BATCH)))
def test_a_request_is_the_same_alone(run, together, request_):
    for case, (rows,) in run([request_]).items():
        assert np.array_equal(rows, together[case][request_])


def test_many_spans_are_merged_by_all_threads(run, together):
    """Three spans of 8 heads of each of 30 requests are more than one merges."""
    for case, rows in run([4] * 30).items():
        assert all(np.array_equal(row, together[case][4]) for row in rows)


def test_pages_may_lie_apart_by_a_given_stride(run, together):
    def every_other(blocks):
        pool = np.empty((2 * len(blocks), *blocks.shape[1:]), blocks.dtype)
        pool.view(np.uint8)[:] = 0xFF  # not a number
        pool[::2] = blocks
        return pool, 2 * blocks[0].size

    for case, rows in run(list(range(len(BATCH))), every_other).items():
        assert all(map(np.array_equal, rows, together[case]))


def test_pages_may_lie_beyond_32_bits(run, together, tmp_path):
    """In sparse files: they take no more room than the pages."""

    def far(blocks):
        stride = 2 * -(-(2**31) // (len(blocks) - 2))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shape = ((len(blocks) - 1) * stride + blocks[0].size,)
        memory = np.memmap(path, blocks.dtype, "w+", shape=shape).view(np.ndarray)
        for i, page in enumerate(blocks):
            memory[i * stride : i * stride + page.size] = page.ravel()
        return memory[: blocks.size].reshape(blocks.shape), stride

    for case, rows in run(list(range(len(BATCH))), far).items():
        assert all(map(np.array_equal, rows, together[case]))


def test_no_requests(run):
    assert all(rows.shape[0] == 0 for (rows,) in run([]).values())


def put(key, at, value):
    def spoil(arrays):
        arrays[key][at] = value

    return spoil


# Requests of 9 tokens after 500 and of 1 after 383, in pages of 128 or of 48.
SPOILT = {
    "a page that is not there": (
        put("table", (0, 0), 10**6),
        "request 0 has the page 1000000, but the KV cache has the pages 0 to",
    ),
    "too few pages": (
        lambda arrays: arrays.update(table=arrays["table"][:, :3].copy()),
        "request 0 has 509 tokens, but the lookup table has pages for 384",
    ),
    "more cached than there are pages": (
        put("lengths", 1, 2**32 - 1),
        "request 1 has 4294967296 tokens, but the rotary embeddings have",
    ),
    "more tokens than positions": (
        lambda arrays: arrays.update(freqs=arrays["freqs"][:400].copy()),
        "request 0 has 509 tokens, but the rotary embeddings have 400 positions",
    ),
    "too few scales": (
        lambda arrays: arrays.update(scales=arrays["scales"][1:].copy()),
        "9 scales of 10 queries",
    ),
    "too few row offsets": (
        lambda arrays: arrays.update(ends=arrays["ends"][:2].copy()),
        "there are 2 row offsets, but with 2 requests there should be 3",
    ),
    "tokens before the first": (put("ends", 0, 1), "from 1 to 10, but should"),
    "tokens beyond the last": (put("ends", 2, 11), "from 0 to 11, but should"),
    "pages within words": (
        lambda arrays: put("stride", 0, arrays["pool"].itemsize % 4 - 1)(arrays),
        "pages are 1 numbers apart, not whole words",
    ),
    "pages of another width": (
        lambda arrays: arrays.update(pool=arrays["pool"][..., :-1].copy()),
        "the KV cache has room for 63 numbers of a head, not for 64",
    ),
    "row offsets that fall": (put("ends", 1, 12), "fall from 12 to 10"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_inputs_that_lead_outside_are_refused(run, what):
    spoil, message = SPOILT[what]
    with pytest.raises(ValueError, match=message):
        run([3, 6], spoil=spoil)
