"""The CPU kernels against float64, for every encoding, on this CPU and any."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf.quants import dequantize
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType

from max_mistral import kernels
from max_mistral.errors import UserError
from max_mistral.kernels.narrow import kept_lines
from max_mistral.kernels.packing import (
    Encoding,
    pack,
    packed_shape,
    panel_bytes,
)
from max_mistral.layers.packed import PackedLinear, PackedQKV, linear
from max_mistral.layers.packed_ops import rounds, takes_amx
from max_mistral.weights.gguf_encode import encode, encoding_of
from tests.harness import root_mean_square, store
from tests.programs import printed_by
from tests.unit import kernel_graph
from tests.unit.kernel_graph import DENSE as SIDE_BY_SIDE
from tests.unit.kernel_graph import (
    EPSILON,
    HOWS,
    IN_12_BITS,
    MIXED,
    NAMED,
    ROUNDED,
    WIDTHS,
)

EPS = float(np.finfo(np.float32).eps)
LAYOUTS = Path(__file__).with_name("layouts.mojo")
# Neither is a multiple of a panel; 77 is odd.
ROWS, DENSE_COLUMNS, QUANTIZED_COLUMNS = 100, 77, 512
DENSE = {
    Encoding.F32: np.float32,
    Encoding.BF16: ml_dtypes.bfloat16,
    Encoding.F16: np.float16,
    Encoding.BF16_IN_12_BITS: ml_dtypes.bfloat16,
}
# The types of GGUF that become an encoding which is none.
SOURCES = {
    Encoding.IQ2_IN_Q3_K: "IQ2_S",
    Encoding.IQ3_XXS_IN_IQ4_XS: "IQ3_XXS",
    Encoding.IQ3_S_IN_IQ4_XS: "IQ3_S",
}
# Others that become an encoding which has another source already.
OTHER_SOURCES = ["TQ1_0", "IQ2_XXS", "IQ2_XS"]


def columns(encoding):
    return DENSE_COLUMNS if encoding.block_columns == 1 else QUANTIZED_COLUMNS


def random_weight(encoding, rows=ROWS, width=None):
    """Returns a weight's bytes by rows and its values in float64."""
    rng = np.random.default_rng(int(encoding))
    width = width or columns(encoding)
    if encoding in DENSE:
        values = rng.standard_normal((rows, width)).astype(DENSE[encoding])
        if encoding == Encoding.BF16_IN_12_BITS:
            add_exponents(values)
        return values.view(np.uint8), values.astype(np.float64)
    source = SOURCES.get(encoding, encoding.name)
    data, want, found = encoded_blocks(source, rows, width)
    assert found == encoding
    return data, want


def add_exponents(values):
    """Adds zeros, and exponents that 4 bits do not hold."""
    rows, width = values.shape
    values[np.abs(values) < 2.0**-8] = 2.0**-8
    values[-1, ::16], values[-1, 8::16] = 0, -0.0
    values[0, 2:4], values[0, -1] = 2.0**-60, 2.0**20
    if width >= 64:
        # Lines of two groups.
        values[0, 6:10] = -(2.0**-60)
    if rows >= 32:
        # All that the second panel has room for.
        values[20, 1 : 2 * kept_lines(width) : 2] = 2.0**-60


def scales_at(source):
    """Where a block of a GGUF type has its float16 numbers."""
    if source in Encoding.__members__:
        return Encoding[source].scales_at
    return {"TQ1_0": (52,)}.get(source, (0,))


def encoded_blocks(source, rows, width):
    """Returns random blocks of a GGUF type as they are encoded for the kernels.

    Bytes by rows, values in float64, and the encoding.
    """
    kind = gguf.GGMLQuantizationType[source]
    rng = np.random.default_rng(int(kind))
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    count = rows * width // size
    blocks = rng.integers(0, 256, (count, bytes_), dtype=np.uint8)
    for at in scales_at(source):
        scales = rng.uniform(-0.1, 0.1, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    encoding, data = encoding_of(kind), blocks
    if encoding.name != kind.name:
        with TemporaryDirectory() as folder:
            data = encode(store(blocks, Path(folder)), kind, (rows, width))
    values = dequantize(blocks.reshape(rows, -1), kind).astype(np.float64)
    return data.reshape(rows, -1), values, encoding


def block_type(encoding):
    """Whose blocks an encoding has; the names of those that GGUF lacks end with it."""
    return gguf.GGMLQuantizationType[encoding.name.split("_IN_")[-1]]


def activations(tokens, width):
    return np.random.default_rng(1).standard_normal((tokens, width)).astype(np.float32)


# 32 + 16 + 8 + 4 + 2: a tile of every size that a CPU has for several.
MANY = 62
TOKENS = np.array([0, 17, 99, 5, 17], np.int64)


def norm_weight():
    return np.random.default_rng(2).standard_normal(DENSE_COLUMNS).astype(np.float32)


def more():
    return np.random.default_rng(3).standard_normal(ROWS).astype(np.float32)


@pytest.fixture(scope="module")
def run():
    """Runs every kernel on ``tokens`` rows, as ``kernel_graph.run`` does."""
    weights = {e: pack(random_weight(e)[0], e, columns(e)) for e in Encoding}
    data = random_weight(Encoding.BF16_IN_12_BITS)[0]
    wide = pack(data, Encoding.BF16, QUANTIZED_COLUMNS)

    def run(tokens, ids=TOKENS, other=None):
        """Runs it on other weights, by their encoding, if there are any."""
        xs = {
            width: activations(
                tokens, DENSE_COLUMNS if width == 1 else QUANTIZED_COLUMNS
            )
            for width in WIDTHS
        }
        ids = np.array(ids, np.int64)
        norm, packed = norm_weight(), weights | (other or {})
        return kernel_graph.run(xs, ids, more(), norm, packed, wide, wide)

    return run


@pytest.fixture(scope="module")
def many(run):
    return run(MANY)


def rounding(encoding, weight, x):
    """What float32 sums may differ by: K roundings of the largest terms.

    A quantized weight is summed as scale * code minus a minimum, each at most
    about twice the row's largest weight (256 codes of 128 either way).
    """
    terms = np.abs(weight)
    if encoding not in DENSE:
        terms = terms + 4 * terms.max(axis=1, keepdims=True)
    return EPS * x.shape[1] * (np.abs(x) @ terms.T)


def int8_steps(x):
    """How far apart each activation's neighbours in int8 are, by 32 columns."""
    blocks = np.abs(x).reshape(len(x), x.shape[1] // 32, 32)
    step = blocks.max(axis=2, keepdims=True) / 127
    return np.broadcast_to(step, blocks.shape).reshape(x.shape)


def bfloat16_steps(x):
    """The same in bfloat16, which has 8 bits."""
    return 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)


def quantization(weight, x):
    """What int8 activations may differ by: half a step in each of 32 columns."""
    return int8_steps(x) / 2 @ np.abs(weight).T


def usual_rounding(weight, steps):
    """The root mean square of an output's error, over all outputs.

    What is rounded to the nearest is off by anything up to half a step either way, as
    likely as not, so by step^2 / 12 in its square; and these add up. A fifth is for
    what a sample differs from that.
    """
    return 1.2 * np.sqrt((steps**2 / 12 @ (weight**2).T).mean())


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("how", HOWS)
def test_a_linear_layer(many, encoding, how):
    weight = random_weight(encoding)[1]
    x = activations(MANY, columns(encoding)).astype(np.float64)
    bound = rounding(encoding, weight, x)
    if HOWS[how](encoding).get("rounded"):
        bound = bound + quantization(weight, x)
    error = np.abs(many[encoding][how] - x @ weight.T)
    assert (error <= bound).all(), (error / bound).max()
    if HOWS[how](encoding).get("rounded"):
        usual = usual_rounding(weight, int8_steps(x))
        assert root_mean_square(error) <= usual, (root_mean_square(error), usual)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_so(run, many, monkeypatch, value):
    """Alone among others, which are numbers: it is no zero."""

    def spoilt(tokens, width):
        x = plain(tokens, width)
        x[1, 40] = value
        return x

    plain = activations
    monkeypatch.setattr(sys.modules[__name__], "activations", spoilt)
    few = run(3)
    for encoding in Encoding:
        for how in HOWS:
            found, want = few[encoding][how], many[encoding][how]
            assert not np.isfinite(found[1]).any(), (encoding, how)
            assert np.array_equal(found[::2], want[:3:2])


@pytest.mark.parametrize("name", ROUNDED)
def test_activations_rounded_to_bfloat16(many, name):
    encoding = Encoding.BF16_IN_12_BITS if name == "amx" else Encoding.BF16
    weight = random_weight(encoding)[1]
    x = activations(MANY, weight.shape[1]).astype(np.float64)
    exact = rounding(Encoding.BF16, weight, x)
    # A bfloat16 has 8 bits, so an activation differs by 2^-9 to 2^-8 at most.
    bound = exact + 2.0**-8 * (np.abs(x) @ np.abs(weight).T)
    error = np.abs(many[name] - x @ weight.T)
    assert (error <= bound).all(), (error / bound).max()
    assert (error > exact).any()
    usual = usual_rounding(weight, bfloat16_steps(x))
    assert root_mean_square(error) <= usual, (root_mean_square(error), usual)


def test_a_norm_before(many):
    weight = random_weight(Encoding.F32)[1]
    x = activations(MANY, DENSE_COLUMNS).astype(np.float64)
    scale = np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON)
    normed = x / scale * norm_weight()
    # Roundings: half of the mean's terms, the root, the quotient, two multiplications.
    before = EPS * (DENSE_COLUMNS / 2 + 4) * (np.abs(normed) @ np.abs(weight).T)
    bound = rounding(Encoding.F32, weight, normed) + before
    error = np.abs(many["normed"] - normed @ weight.T)
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("how", IN_12_BITS)
def test_weights_in_12_bits_are_those_in_16(run, many, how):
    for found in (many, run(8), run(1)):
        assert np.array_equal(found[how, 12], found[how, 16])
        thrice = np.concatenate([found[how, 16]] * 3, axis=1)
        assert np.array_equal(found[how, "together"], thrice)


@pytest.mark.parametrize(
    ("name", "encodings"), [("dense", SIDE_BY_SIDE), ("mixed", MIXED)]
)
def test_weights_side_by_side_are_as_each_alone(many, name, encodings):
    want = np.concatenate([many[encoding]["fast"] for encoding in encodings], axis=1)
    assert np.array_equal(many[name], want)


def test_dense_and_quantized_projections_of_one_input():
    names = {
        "q_proj": Encoding.Q4_K,
        "k_proj": Encoding.BF16,
        "v_proj": Encoding.Q8_0,
    }
    rng = np.random.default_rng(0)
    weights = {}
    for name, encoding in names.items():
        shape = packed_shape(encoding, ROWS, QUANTIZED_COLUMNS)
        data = random_weight(encoding)[0]
        if encoding in DENSE:
            values = rng.standard_normal((ROWS, QUANTIZED_COLUMNS))
            data = values.astype(DENSE[encoding]).view(np.uint8)
        weights[f"{name}.weight"] = pack(data, encoding, QUANTIZED_COLUMNS)
        assert weights[f"{name}.weight"].shape == shape
    layer = PackedQKV(
        {n: PackedLinear(QUANTIZED_COLUMNS, ROWS, e) for n, e in names.items()}
    )
    layer.load_state_dict(weights, weight_alignment=1)
    x = TensorType(DType.float32, ["tokens", QUANTIZED_COLUMNS], DeviceRef.CPU())
    with Graph("qkv", input_types=[x], custom_extensions=[kernels.library()]) as graph:
        value = graph.inputs[0].tensor
        graph.output(layer(value), *(getattr(layer, name)(value) for name in names))
    session = InferenceSession(devices=[CPU()])
    model = session.load(graph, weights_registry=layer.state_dict())
    found = model.execute(Buffer.from_numpy(activations(3, QUANTIZED_COLUMNS)))
    together, *each = [output.to_numpy() for output in found]
    assert np.array_equal(together, np.concatenate(each, axis=1))


def test_what_is_fused_is_as_it_would_be_alone(many):
    # A power of two scales float32 sums and int8 steps without rounding.
    want = many[Encoding.Q4_K]["fast"] * np.float32(0.5) + more()
    assert np.array_equal(many["fused"], want)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_an_embedding_is_exact(many, encoding):
    want = random_weight(encoding)[1][TOKENS]
    found = many[encoding]["embedding"]
    if len(encoding.scales_at) < 2 and encoding != Encoding.IQ4_XS:
        # One multiplication, so the nearest float32; Q6_K multiplies twice.
        np.testing.assert_allclose(found, want, rtol=4 * EPS, atol=1e-30)
    else:
        scale = np.abs(want).max()
        np.testing.assert_allclose(found, want, rtol=0, atol=4 * EPS * scale)


@pytest.mark.parametrize("source", OTHER_SOURCES)
def test_an_embedding_that_is_encoded_anew_is_exact(run, source):
    data, want, encoding = encoded_blocks(source, ROWS, QUANTIZED_COLUMNS)
    packed = pack(data, encoding, QUANTIZED_COLUMNS)
    found = run(1, other={encoding: packed})[encoding]["embedding"]
    np.testing.assert_allclose(found, want[TOKENS], rtol=4 * EPS, atol=1e-30)


# The last panel is padded to 112 rows.
@pytest.mark.parametrize("token", [-1, ROWS, 111, 112, 99999999, 2**63 - 1, -(2**63)])
def test_a_token_without_a_row_raises(run, token):
    """And reads no memory beside the weight, nor ends the process."""
    with pytest.raises(ValueError, match=f"token id {token} is not in the embedding"):
        run(1, [0, token, 99])
    run(1)


@pytest.mark.parametrize("tokens", [*range(12), 15, 16, 17, 32, 33])
def test_a_row_is_the_same_in_any_batch(run, many, tokens):
    few = run(tokens)
    for encoding in Encoding:
        for how in HOWS:
            assert np.array_equal(few[encoding][how], many[encoding][how][:tokens])
    for name in NAMED:
        assert np.array_equal(few[name], many[name][:tokens])


@pytest.mark.parametrize(
    "encoding", [e for e in Encoding if e != Encoding.BF16_IN_12_BITS]
)
def test_packed_bytes_are_as_many_as_the_files(encoding):
    size, bytes_ = encoding.block_columns, encoding.block_bytes
    panels, panel = packed_shape(encoding, 4096, 4096)
    assert panels * panel == 4096 * 4096 // size * bytes_


def test_mojo_and_python_agree_on_every_encoding():
    """In this order, on its name and block, and on the bytes of a panel."""
    want = []
    for encoding in Encoding:
        # A bfloat16 block of the kernels is two columns.
        size = 2 if encoding == Encoding.BF16 else encoding.block_columns
        widths = [size, 4096, 77 if size <= 2 else 512]
        sizes = [panel_bytes(encoding, width) for width in widths]
        want.append(" ".join(map(str, [encoding.name, size, *sizes])))
    assert [int(e) for e in Encoding] == list(range(len(want)))
    assert printed_by(LAYOUTS) == want


@pytest.mark.parametrize("encoding", [e for e in Encoding if not e.is_dense])
def test_blocks_are_those_of_gguf(encoding):
    assert gguf.GGML_QUANT_SIZES[block_type(encoding)] == (
        encoding.block_columns,
        encoding.block_bytes,
    )


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "fast")
    with pytest.raises(UserError, match="MAX_MISTRAL_KERNELS is 'fast'"):
        kernels.mode()


@pytest.mark.parametrize(
    ("mode", "bfloat16", "rounded"),
    [
        ("on", True, [Encoding.BF16, Encoding.Q8_0]),
        ("on", False, [Encoding.Q8_0]),
        ("exact", True, []),
        ("portable", True, []),
    ],
)
def test_what_is_rounded_beside_which_weights(mode, bfloat16, rounded, monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: bfloat16)
    encodings = [Encoding.F32, Encoding.BF16, Encoding.F16, Encoding.Q8_0]
    assert rounds(Encoding.BF16_IN_12_BITS, mode) == rounds(Encoding.BF16, mode)
    assert [e for e in encodings if rounds(e, mode)] == rounded


@pytest.mark.parametrize(("amx", "in_dim"), [(True, 64), (True, 80), (False, 64)])
def test_amx_multiplies_whole_tiles_of_bfloat16(amx, in_dim, monkeypatch):
    monkeypatch.setattr(kernels, "has_amx", lambda: amx)
    found = [e for e in Encoding if takes_amx(e, in_dim)]
    assert found == ([Encoding.BF16] if amx and in_dim == 64 else [])


def test_amx_is_used_where_linux_grants_it(monkeypatch):
    asked = []

    def asks(answer):
        library = SimpleNamespace(syscall=lambda *given: asked.append(given) or answer)
        monkeypatch.setattr(kernels.ctypes, "CDLL", lambda name: library)
        return kernels.has_amx.__wrapped__()

    flags = frozenset({"avx512f", "amx_tile", "amx_bf16"})
    monkeypatch.setattr(kernels, "_cpu_flags", lambda: flags)
    assert asks(0)
    assert not asks(-1)
    assert asked == [(158, 0x1023, 18)] * 2
    monkeypatch.setattr(kernels, "_cpu_flags", lambda: flags - {"amx_bf16"})
    assert not asks(0)
    assert len(asked) == 2


@pytest.mark.parametrize(("mode", "operations"), [("exact", 1), ("on", 2)])
def test_weights_whose_activations_differ_are_apart(mode, operations, monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: True)
    layers = [PackedLinear(8, 16, e, mode) for e in (Encoding.F32, Encoding.BF16)]
    for i, layer in enumerate(layers):
        layer.weight.name = f"weight{i}"
    x = TensorType(DType.float32, ["tokens", 8], DeviceRef.CPU())
    with Graph("two", input_types=[x], custom_extensions=[kernels.library()]) as graph:
        graph.output(linear(graph.inputs[0].tensor, layers))
    assert str(graph).count("mistral_linear") == operations


def test_the_library_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = kernels.library()
    made = path.stat().st_mtime_ns
    assert kernels.library() == path
    assert path.stat().st_mtime_ns == made
