"""The op of a whole block, beside the ops that it stands for."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType, ops
from max.nn.layer import Module
from max.nn.transformer import ReturnLogits

from max_mistral import kernels
from max_mistral.formats.qkv import QKV
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.kv_cache import SCALE_BYTES
from max_mistral.layers import packed_block as module
from max_mistral.layers.attention import MistralAttention
from max_mistral.layers.attention_step import AttentionStep
from max_mistral.layers.packed import PackedLinear, PackedMLP, PackedNorm, PackedQKV
from max_mistral.layers.packed_block import packed_block
from max_mistral.mistral import Mistral
from max_mistral.workarounds.graph_cache import find_at_once
from tests.unit.test_kernels import random_weight

HOST = DeviceRef.CPU()
EPSILON = 1e-5
EPS = np.finfo(np.float32).eps
PAGE, PAGES, LAYER, LAYERS = 128, 12, 1, 2
POSITIONS = 512
ALL = 2**32 - 1
# How many tokens each request has in this step, and in the cache from earlier ones.
BATCH = [(1, 300), (61, 0), (3, 17), (1, 5), (9, 128)]
TABLE = np.array([[1, 4, 7], [2, 0, 0], [9, 0, 0], [11, 0, 0], [3, 8, 0]], np.uint32)
NAMES = [*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"]
Q4_K, Q6_K, Q8_0 = Encoding.Q4_K, Encoding.Q6_K, Encoding.Q8_0
F32, BF16 = Encoding.F32, Encoding.BF16
NARROW = Encoding.BF16_IN_12_BITS


@dataclass(frozen=True)
class Case:
    """A block."""

    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int
    encodings: tuple[Encoding, ...]
    """Of ``NAMES``."""
    mode: str
    cache: DType = DType.float32
    window: int | None = None
    scaled: bool = False

    def page_shape(self):
        """Returns the shape of a page."""
        width = self.head_dim + (SCALE_BYTES if self.cache == DType.int8 else 0)
        return 2, LAYERS, PAGE, self.kv_heads, width

    def matrices(self):
        """Returns the encoding, rows and columns of each, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = [queries, keys, keys, self.hidden, self.wide, self.wide, self.hidden]
        columns = [self.hidden] * 3 + [queries, self.hidden, self.hidden, self.wide]
        shapes = zip(self.encodings, rows, columns, strict=True)
        return dict(zip(NAMES, shapes, strict=True))


MIXED = (Q4_K, Q4_K, Q6_K, Q8_0, Q4_K, Q6_K, Q8_0)
CASES = {
    # Rows of 512 columns and more are interleaved by several threads.
    "quantized": Case(512, 768, 8, 2, 64, MIXED, "exact", DType.int8),
    "rounded": Case(512, 768, 8, 2, 64, MIXED, "on", DType.int8, window=70),
    "dense": Case(1061, 37, 2, 1, 20, (F32, F32, BF16, F32, F32, BF16, F32), "exact"),
    "both": Case(
        256, 64, 3, 3, 10, (Q8_0, Q4_K, Q8_0, F32, *MIXED[4:]), "portable", scaled=True
    ),
    "bfloat16": Case(64, 96, 4, 2, 16, (BF16,) * 7, "on", DType.bfloat16),
    "12 bits": Case(
        *(64, 128, 4, 2, 16, (NARROW, BF16, NARROW, NARROW, NARROW, BF16, NARROW)),
        *("on", DType.bfloat16),
    ),
}


# What all blocks take of a step: where requests end, how many tokens each has in the
# cache, their pages, that pages are packed, and how many of a request's last tokens are
# wanted.
SHARED = [
    TensorType(DType.uint32, ["ends"], HOST),
    TensorType(DType.uint32, ["requests"], HOST),
    TensorType(DType.uint32, ["requests", TABLE.shape[1]], HOST),
    TensorType(DType.int64, [1], HOST),
    TensorType(DType.uint32, [], HOST),
]


class Block(Module):
    """A case's layers."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        linears = {
            name: PackedLinear(columns, rows, encoding, case.mode)
            for name, (encoding, rows, columns) in case.matrices().items()
        }
        self.self_attn = MistralAttention(
            PackedQKV({name: linears[name] for name in QKV}),
            linears["o_proj"],
            kv_params=SimpleNamespace(dtype=case.cache),
            num_heads=case.heads,
            head_dim=case.head_dim,
            scale=case.head_dim**-0.5,
            window=case.window,
        )
        encodings = dict(zip(NAMES, case.encodings, strict=True))
        self.mlp = PackedMLP(case.hidden, case.wide, encodings, case.mode)
        self.first = PackedNorm(case.hidden, DType.float32, EPSILON)
        self.second = PackedNorm(case.hidden, DType.float32, EPSILON)

    def weights(self):
        """Returns random ones, packed, by their names."""
        rng = np.random.default_rng(2)
        found = {
            f"{norm}.weight": rng.standard_normal(self.case.hidden).astype(np.float32)
            for norm in ("first", "second")
        }
        for name, each in self.case.matrices().items():
            where = "mlp" if name in NAMES[4:] else "self_attn"
            packed = pack(random_weight(*each)[0], each[0], each[2])
            found[f"{where}.{name}.weight"] = packed
        return found

    def inputs(self):
        """Returns the types of what a step takes."""
        case = self.case
        block = ["pages", *case.page_shape()]
        return [
            TensorType(DType.float32, ["tokens", case.hidden], HOST),
            TensorType(DType.float32, [POSITIONS, case.head_dim], HOST),
            TensorType(DType.float32, ["tokens"], HOST),
            *[BufferType(case.cache, block, HOST)] * 2,
        ]

    def __call__(self, values, shared):
        """Returns what the op makes of a step, and what the ops one by one make."""
        x, freqs, scales, *caches = values
        ends, lengths, table, stride, last_tokens = (value.tensor for value in shared)
        found = []
        for alike, cache in zip((None, False), caches, strict=True):
            with pytest.MonkeyPatch.context() as patch:
                if alike is not None:
                    patch.setattr(module, "are_alike", lambda layers: False)
                found.append(
                    packed_block(
                        x.tensor,
                        self.self_attn,
                        self.mlp,
                        [self.first, self.second],
                        AttentionStep(
                            ops.constant(LAYER, DType.uint32, device=HOST),
                            SimpleNamespace(
                                kv_blocks=cache.buffer,
                                cache_lengths=lengths,
                                lookup_table=table,
                                page_stride=stride,
                            ),
                            freqs.tensor,
                            ends,
                            scales.tensor if self.case.scaled else None,
                        ),
                        last_tokens,
                    )
                )
        return found


class Blocks(Module):
    """Of all cases."""

    def __init__(self):
        super().__init__()
        for name, case in CASES.items():
            setattr(self, name, Block(case))

    def __call__(self, values):
        shared, rest = values[: len(SHARED)], values[len(SHARED) :]
        return [
            output
            for i, name in enumerate(CASES)
            for output in getattr(self, name)(rest[5 * i : 5 * i + 5], shared)
        ]


def numbers(case):
    """Returns a step's activations, turns, scales, and the cache of earlier steps."""
    rng = np.random.default_rng(1)
    tokens = sum(new for new, _ in BATCH)
    x = rng.standard_normal((tokens, case.hidden)).astype(np.float32)
    angles = np.outer(np.arange(POSITIONS), 1 / (1 + np.arange(case.head_dim // 2)))
    turns = np.stack([np.cos(angles), np.sin(angles)], -1).reshape(POSITIONS, -1)
    scales = rng.uniform(0.5, 2, tokens).astype(np.float32)
    cache = rng.standard_normal((PAGES, *case.page_shape())).astype(np.float32)
    if case.cache == DType.int8:
        shape = (PAGES, 2, LAYERS, PAGE * case.kv_heads)
        codes = rng.integers(0, 256, (*shape, case.head_dim), np.uint8)
        each = rng.uniform(1e-3, 2e-2, shape).astype(np.float32).view(np.uint8)
        # [pages, 2, layers, codes of all tokens and heads, their scales]
        parts = [codes.reshape(*shape[:3], -1), each.reshape(*shape[:3], -1)]
        cache = np.concatenate(parts, axis=-1).reshape(cache.shape)
    elif case.cache == DType.bfloat16:
        cache = (cache.view(np.uint32) >> 16).astype(np.uint16)
    return x, turns.astype(np.float32), scales, cache


@pytest.fixture(scope="module")
def run():
    """Returns a function of requests, and of how many last tokens of each are wanted.

    It returns, for each case, a pair of the op's rows and of the ops' one by one, and
    a pair of their caches.
    """
    blocks = Blocks()
    blocks.load_state_dict(
        {
            f"{name}.{weight}": data
            for name in CASES
            for weight, data in getattr(blocks, name).weights().items()
        },
        weight_alignment=1,
    )
    types = [*SHARED]
    for name in CASES:
        types += getattr(blocks, name).inputs()
    with Graph(
        "blocks", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        graph.output(*blocks(graph.inputs))
    session = InferenceSession(devices=[CPU()])
    find_at_once(session)
    model = session.load(graph, weights_registry=blocks.state_dict())

    def run(requests, last_tokens=ALL):
        chosen = [BATCH[i] for i in requests]
        starts = np.cumsum([0] + [new for new, _ in BATCH])
        rows = np.concatenate(
            [np.arange(0), *(np.arange(starts[i], starts[i + 1]) for i in requests)]
        ).astype(int)
        ends = np.cumsum([0] + [new for new, _ in chosen]).astype(np.uint32)
        arrays = [
            ends,
            np.array([cached for _, cached in chosen], np.uint32),
            np.ascontiguousarray(TABLE[requests]),
            np.array([-1], np.int64),
            np.array(last_tokens, np.uint32),
        ]
        buffers = list(map(Buffer.from_numpy, arrays))
        caches = {}
        for name, case in CASES.items():
            x, turns, scales, cache = numbers(case)
            buffers += map(Buffer.from_numpy, [x[rows], turns, scales[rows]])
            caches[name] = [Buffer.from_numpy(cache.copy()) for _ in range(2)]
            buffers += [each.view(case.cache) for each in caches[name]]
        found = [output.to_numpy() for output in model.execute(*buffers)]
        pairs = zip(found[::2], found[1::2], strict=True)
        return {
            name: (pair, [cache.to_numpy() for cache in caches[name]])
            for name, pair in zip(CASES, pairs, strict=True)
        }

    return run


@pytest.fixture(scope="module")
def together(run):
    return run(list(range(len(BATCH))))


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_ops_are_one_by_one(together, name):
    """But for silu, which MAX's own operation computes there."""
    (rows, others), (cache, other_cache) = together[name]
    case, largest = CASES[name], np.abs(others).max()
    # Eight roundings of each of the terms that down_proj adds up.
    bound = 8 * EPS * case.wide
    if case.mode == "on":
        # Two of a row's numbers may become the next int8 or bfloat16.
        bound += 2 * (2**-8 if BF16 in case.encodings else 1 / 127)
    assert np.isfinite(largest)
    assert np.all(np.abs(rows - others) <= bound * largest)
    assert np.array_equal(cache, other_cache)
    assert not np.array_equal(cache, numbers(case)[-1].view(cache.dtype))


@pytest.mark.parametrize("request_", range(len(BATCH)))
def test_a_request_is_the_same_alone(run, together, request_):
    ends = np.cumsum([0] + [new for new, _ in BATCH])
    for name, ((rows, _), _) in run([request_]).items():
        (all_rows, _), _ = together[name]
        assert np.array_equal(rows, all_rows[ends[request_] : ends[request_ + 1]])


@pytest.mark.parametrize("last_tokens", [1, 3, 20])
def test_wanted_rows_are_the_same_without_the_others(run, together, last_tokens):
    everyone = list(range(len(BATCH)))
    wanted = np.concatenate([np.arange(new)[::-1] < last_tokens for new, _ in BATCH])
    # What this leaves in memory is wrong in the next run.
    run(everyone[::-1])
    for name, ((rows, _), (cache, _)) in run(everyone, last_tokens).items():
        (all_rows, _), (all_cache, _) = together[name]
        assert np.array_equal(rows[wanted], all_rows[wanted])
        assert np.array_equal(cache, all_cache)


@pytest.mark.parametrize(
    ("returned", "embeds", "last_block"),
    [
        (ReturnLogits.LAST_TOKEN, False, 1),
        (ReturnLogits.ALL, True, 1),
        (ReturnLogits.ALL, False, ALL),
        (ReturnLogits.VARIABLE, False, ALL),
    ],
)
def test_how_many_tokens_of_a_block_are_read(returned, embeds, last_block):
    config = SimpleNamespace(num_hidden_layers=3, embeds=embeds)
    decoder = SimpleNamespace(config=config, return_logits=returned)
    found = [Mistral._tokens_read(decoder, layer) for layer in range(3)]
    assert found == [ALL, ALL, last_block]


def test_no_requests(run):
    for name, ((rows, _), (cache, _)) in run([]).items():
        assert rows.shape[0] == 0
        assert np.array_equal(cache, numbers(CASES[name])[-1].view(cache.dtype))


def test_threads_wait_for_each_other(run):
    """A phase that began too early would show in some of so many runs."""
    orders = [0, 3], [3, 0]
    first = [run(requests) for requests in orders]
    for turn in range(100):
        # What the run before left in memory is wrong in this one.
        requests = orders[turn % 2]
        for name, ((rows, _), (cache, _)) in run(requests).items():
            (want, _), (want_cache, _) = first[turn % 2][name]
            assert np.array_equal(rows, want)
            assert np.array_equal(cache, want_cache)


@pytest.mark.parametrize(
    ("changed", "operations"),
    [
        ({}, {"block": 1, "linear": 0, "attention": 0}),
        ({"up_proj": BF16}, {"block": 0, "linear": 5, "attention": 1}),
        ({"v_proj": BF16}, {"block": 0, "linear": 6, "attention": 1}),
    ],
)
def test_weights_of_two_kinds_take_ops_one_by_one(changed, operations, monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: True)
    encodings = dict.fromkeys(NAMES, F32) | changed
    block = Block(Case(16, 32, 2, 1, 4, tuple(encodings.values()), "on"))
    block.load_state_dict(block.weights(), weight_alignment=1)
    types = [*SHARED, *block.inputs()]
    with Graph(
        "one", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        shared, rest = graph.inputs[: len(SHARED)], graph.inputs[len(SHARED) :]
        graph.output(block(rest, shared)[0])
    # Its other output is made one by one by any of them.
    apart = operations if not operations["block"] else dict(linear=4, attention=1)
    for name, count in operations.items():
        assert str(graph).count(f"mistral_{name}") == count + apart.get(name, 0)
