"""The op of what a block does after attention, beside the ops that it stands for."""

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops

from max_mistral import kernels
from max_mistral.graph_cache import find_at_once
from max_mistral.kernels.packing import Encoding, pack, packed_shape
from max_mistral.layers.packed import PackedLinear, PackedMLP, PackedNorm, finish_block
from max_mistral.layers.packed_ops import Normed, after_attention, multiply
from tests.unit.test_kernels import random_weight

HOST = DeviceRef.CPU()
EPSILON = 1e-5
EPS = np.finfo(np.float32).eps
MANY = 61
Q4_K, Q6_K, Q8_0 = Encoding.Q4_K, Encoding.Q6_K, Encoding.Q8_0
F32, BF16 = Encoding.F32, Encoding.BF16
# hidden_size, feed_forward_length, heads * head_dim; the encodings of o, gate, up and
# down; and how they are multiplied.
CASES = {
    "quantized": ((256, 768, 512), (Q4_K, Q4_K, Q6_K, Q8_0), {}),
    "rounded": ((256, 768, 512), (Q4_K, Q4_K, Q6_K, Q8_0), {"rounded": True}),
    "odd": ((21, 37, 10), (F32, F32, BF16, F32), {}),
    "both": ((256, 64, 30), (F32, Q4_K, Q8_0, BF16), {"portable": True}),
}


def matrices(name):
    """Returns the encoding, rows and columns of o, gate, up and down."""
    (hidden, wide, heads), encodings, _ = CASES[name]
    shapes = [(hidden, heads), (wide, hidden), (wide, hidden), (hidden, wide)]
    return [(e, *shape) for e, shape in zip(encodings, shapes, strict=True)]


def activations(name):
    """Returns ``x`` and ``attended``, and the norm's weight."""
    (hidden, _, heads), *_ = CASES[name]
    rng = np.random.default_rng(1)
    shapes = [(MANY, hidden), (MANY, heads), (hidden,)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def apart(x, attended, weights, encodings, out_dims, **how):
    """Does what ``after_attention`` does, an op at a time."""

    def linear(x, which):
        some = [[values[i] for i in which] for values in (weights, encodings, out_dims)]
        return multiply(x, *some, **how)

    h = x.x + linear(attended, [0])
    both = linear(Normed(h, x.weight, x.epsilon), [1, 2])
    wide = out_dims[1]
    return h + linear(ops.silu(both[:, :wide]) * both[:, wide:], [3])


@pytest.fixture(scope="module")
def run():
    """Returns a function of tokens: case -> outputs of the op, and of those apart."""
    types, outputs, packed = [], [], {}
    for name, ((hidden, _, heads), *_) in CASES.items():
        types += [
            TensorType(DType.float32, ["tokens", hidden], HOST),
            TensorType(DType.float32, ["tokens", heads], HOST),
            TensorType(DType.float32, [hidden], HOST),
        ]
        types += [
            TensorType(DType.uint8, list(packed_shape(*each)), HOST)
            for each in matrices(name)
        ]
        packed[name] = [
            pack(random_weight(*each)[0], each[0], each[2]) for each in matrices(name)
        ]
    with Graph(
        "after", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        values = iter([value.tensor for value in graph.inputs])
        for name, (_, encodings, how) in CASES.items():
            x, attended, norm = (next(values) for _ in range(3))
            weights = [next(values) for _ in range(4)]
            rows = [rows for _, rows, _ in matrices(name)]
            args = Normed(x, norm, EPSILON), attended, weights, encodings, rows
            each = how | {"rounded": [how.get("rounded", False)] * 4}
            outputs += [after_attention(*args, **each), apart(*args, **how)]
        graph.output(*outputs)
    session = InferenceSession(devices=[CPU()])
    find_at_once(session)
    model = session.load(graph)

    def run(tokens):
        buffers = []
        for name in CASES:
            x, attended, norm = activations(name)
            arrays = [x[:tokens], attended[:tokens], norm, *packed[name]]
            buffers += map(Buffer.from_numpy, arrays)
        found = [output.to_numpy() for output in model.execute(*buffers)]
        return dict(zip(CASES, zip(found[::2], found[1::2], strict=True), strict=True))

    return run


@pytest.fixture(scope="module")
def many(run):
    return run(MANY)


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_ops_are_one_by_one(many, name):
    """But for silu, which MAX's own operation computes there."""
    together, one_by_one = many[name]
    x, attended, norm = (each.astype(np.float64) for each in activations(name))
    o, gate, up, down = (random_weight(*each)[1] for each in matrices(name))
    h = x + attended @ o.T
    n = h / np.sqrt(np.mean(h * h, axis=1, keepdims=True) + EPSILON) * norm
    g = n @ gate.T
    with np.errstate(over="ignore"):
        act = np.abs(g / (1 + np.exp(-g)) * (n @ up.T))
    # Four roundings of silu, each at most doubled by those around it.
    bound = 8 * EPS * (act @ np.abs(down).T)
    if name == "rounded":
        # Two of a row's numbers may be rounded to the next int8.
        bound += 2 * act.max(axis=1, keepdims=True) / 127 * np.abs(down).max()
    assert np.all(np.abs(together - one_by_one) <= bound)
    # A part that is left out would show.
    assert np.all(bound < 0.01 * np.abs(one_by_one).max())


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 8, 9, 17, 33])
def test_a_row_is_the_same_in_any_batch(run, many, tokens):
    for name, (together, _) in run(tokens).items():
        assert np.array_equal(together, many[name][0][:tokens])


def test_threads_wait_for_each_other(run, many):
    """A phase that began too early would show in some of so many runs."""
    for _ in range(300):
        for name, (together, _) in run(2).items():
            assert np.array_equal(together, many[name][0][:2])


@pytest.mark.parametrize(("mode", "operations"), [("exact", 0), ("on", 4)])
def test_a_gate_that_is_rounded_alone_takes_ops_one_by_one(
    mode, operations, monkeypatch
):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: True)
    encodings = dict(gate_proj=F32, up_proj=BF16, down_proj=F32)
    o_proj, mlp = PackedLinear(8, 16, F32, mode), PackedMLP(16, 32, encodings, mode)
    norm = PackedNorm(16, DType.float32, EPSILON)
    layers = [norm, o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    for i, layer in enumerate(layers):
        layer.weight.name = f"weight{i}"
    types = [TensorType(DType.float32, ["tokens", n], HOST) for n in (16, 8)]
    with Graph(
        "rest", input_types=types, custom_extensions=[kernels.library()]
    ) as graph:
        x, attended = (value.tensor for value in graph.inputs)
        graph.output(finish_block(x, attended, o_proj, norm, mlp))
    assert str(graph).count("mistral_linear") == operations
    assert str(graph).count("mistral_after_attention") == (0 if operations else 1)
