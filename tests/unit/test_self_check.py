"""The self-check of GPUs: on a CPU, with faults such as a GPU's."""

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from max.driver import CPU, Buffer, DeviceSpec
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, default_custom_extensions

from max_mistral import MistralConfig, cublas, gpu_kernels, matmuls
from max_mistral.errors import UserError
from max_mistral.layers.block import carries_delta
from max_mistral.matmuls import (
    MULTISTAGE,
    OWN,
    VENDOR,
    choices_for,
    choose,
    use_right_matmul,
)
from max_mistral.products import (
    Product,
    block_products,
    check_graph,
    leaves_some_dense,
    operands_of,
    products,
    static_scales,
)
from max_mistral.self_check import Wrong, allowed, rows_to_try, wrong_products
from tests.harness import virtual_gpus
from workbench.checkpoints import BASE, write_checkpoint
from workbench.demo import ROOT
from workbench.quantized import CONFIG, LAYOUTS, pipeline, write_quantized
from workbench.runner import make_pipeline_config

PRODUCTS = [
    Product(256, 96),
    Product(320, 96, "swiglu"),
    Product(136, 96, "float32", is_head=True),
]
ROWS = rows_to_try()
ALONE = 256  # how many different rows there are


def nothing(result, alone):
    """A right product."""


def late_rows(result, alone):
    """modular/modular #6883: the first rows are right, and the rest garbage."""
    if not alone:
        result[8:] = np.roll(result[8:], 1, axis=1)


def one_tile(result, alone):
    if not alone:
        result[64:, 64:128] *= -1


def not_a_number(result, alone):
    if not alone:
        result[40:41, 3] = np.nan


def large_tile(result, alone):
    """Where MAX chooses another tile, its first rows are right."""
    if len(result) > 1024:
        result[8:] = np.roll(result[8:], 1, axis=1)


def last_row(result, alone):
    if len(result) > 1024:
        result[-1] *= -1


def every_row(result, alone):
    """Each row is what it is alone, and that is not what it should be."""
    result *= 3


class Faulty:
    """A session whose models' results a fault has spoilt."""

    def __init__(self, model, fault):
        self.model, self.fault = model, fault

    def load(self, graph):
        return self

    def execute(self, *inputs):
        return [self._spoilt(buffer) for buffer in self.model.execute(*inputs)]

    def _spoilt(self, buffer):
        is_float32 = buffer.dtype == DType.float32
        raw = buffer if is_float32 else buffer.view(DType.uint16, buffer.shape)
        # A view of the buffer's own memory.
        result = raw.to_numpy()
        self.fault(
            result if is_float32 else result.view(ml_dtypes.bfloat16),
            alone=len(result) == 1,
        )
        return buffer


@pytest.fixture(scope="module")
def model():
    graph = check_graph(PRODUCTS, DType.bfloat16, DeviceRef.CPU())
    return InferenceSession(devices=[CPU()]).load(graph)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (nothing, []),
        (late_rows, [(rows, rows - 8) for rows in ROWS if rows > 8]),
        (one_tile, [(rows, rows - 64) for rows in ROWS if rows > 64]),
        (not_a_number, [(rows, 1) for rows in ROWS if rows > 40]),
        (large_tile, [(rows, rows - 8) for rows in ROWS if rows > 1024]),
        (last_row, [(rows, 1) for rows in ROWS if rows > 1024]),
        (every_row, [(1, ALONE)]),
    ],
)
def test_what_is_wrong_is_found(model, fault, wrong):
    found = wrong_products(Faulty(model, fault), CPU(), PRODUCTS, DType.bfloat16)
    for product in PRODUCTS:
        most = ALONE if product.is_head else max(ROWS)
        assert of(found, product) == [each for each in wrong if each[0] <= most]


def of(found, product):
    """Returns for how many rows how many of a product are wrong."""
    return [(each.rows, each.wrong_rows) for each in found if each.product == product]


def test_the_numbers_of_rows():
    assert {*range(8, 257, 8), 384, 512, 768, 1024, 2048} < set(ROWS)
    assert rows_to_try(4000) == [*ROWS, 4000]
    assert rows_to_try(100_000) == [*ROWS, 8192]
    assert rows_to_try(1) == ROWS


def test_a_steps_most_rows_are_tried(model):
    def longest(result, alone):
        if len(result) == 3000:
            result[-5:] *= -1

    model = Faulty(model, longest)
    found = wrong_products(model, CPU(), PRODUCTS, DType.bfloat16, 3000)
    assert [(each.product, each.rows, each.wrong_rows) for each in found] == [
        (product, 3000, 5) for product in PRODUCTS if not product.is_head
    ]


class InNumPy:
    """A session whose models' products are NumPy's: a CPU has no kernel for FP8."""

    def __init__(self, products, wrong_scale=False, short=lambda rows: False):
        self.products, self.wrong_scale, self.short = products, wrong_scale, short
        self.weights = {}

    def load(self, graph):
        return self

    def execute(self, *inputs):
        inputs = iter(inputs)
        results = []
        for product in self.products:
            count = len(operands_of(product, 1, DType.bfloat16))
            results.append(
                self._product(product, *(next(inputs) for _ in range(count)))
            )
        return results

    def _product(self, product, x, weight, *scales):
        if product not in self.weights:
            self.weights[product] = array(weight)
        x, weight = array(x), self.weights[product]
        if self.short(len(x)):
            x = x[:, :-64]
        y = x @ weight[:, : x.shape[1]].T
        if product.fp8:
            rows, columns = static_scales(product)
            columns = np.full(len(weight), columns)
            if not product.static:
                rows, columns = (buffer.to_numpy() for buffer in scales)
                rows = rows[:, None]
            if self.wrong_scale:
                columns = columns * 2 if product.static else np.roll(columns, 1)
            y = y * rows * columns
        elif product.then == "swiglu":
            gate, up = np.split(y, 2, axis=1)
            y = gate / (1 + np.exp(-gate)) * up
        y = y.astype(ml_dtypes.bfloat16)
        return Buffer.from_numpy(y.view(np.uint16)).view(DType.bfloat16, y.shape)


def array(buffer):
    """Returns a buffer of bfloat16 or FP8 as float32."""
    if buffer.dtype == DType.bfloat16:
        raw = buffer.view(DType.uint16, buffer.shape).to_numpy()
        return raw.view(ml_dtypes.bfloat16).astype(np.float32)
    raw = buffer.view(DType.uint8, buffer.shape).to_numpy()
    return raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


# Of a 7B model's gate and up, of a 123B's ``down_proj``, and of a 7B's in FP8. As
# heads, for more than 256 rows take time.
DEEP = [
    Product(128, 4096, "swiglu", is_head=True),
    Product(64, 28672, is_head=True),
    Product(64, 14336, fp8=True, is_head=True),
    Product(64, 14336, fp8=True, static=True, is_head=True),
]


def test_terms_that_are_left_out_are_found():
    """The last 64: a step of a kernel's."""

    def found(short):
        wrong = wrong_products(InNumPy(DEEP, short=short), CPU(), DEEP, DType.bfloat16)
        assert all(each.wrong_rows >= each.rows // 2 for each in wrong)
        return [(each.product, each.rows) for each in wrong]

    assert found(lambda rows: False) == []
    assert found(lambda rows: True) == [(product, 1) for product in DEEP]
    counts = [rows for rows in ROWS if rows <= ALONE]
    assert found(lambda rows: rows > 1) == [(p, n) for n in counts for p in DEEP]


def test_rounding_is_allowed_by_the_dtype():
    product = Product(64, 4096)
    assert allowed(product, DType.float32) == allowed(product, DType.bfloat16) / 8
    assert allowed(product, DType.bfloat16) < 1 / 32


FP8_PRODUCTS = [
    Product(256, 96, fp8=True),
    Product(320, 160, fp8=True),
    Product(128, 96, fp8=True, static=True),
]


def test_another_scale_is_found():
    model = InNumPy(FP8_PRODUCTS, wrong_scale=True)
    found = wrong_products(model, CPU(), FP8_PRODUCTS, DType.bfloat16)
    assert [(each.product, each.rows) for each in found] == [
        (product, 1) for product in FP8_PRODUCTS
    ]
    # By chance a row's difference may be small.
    assert all(each.wrong_rows > 0.9 * ALONE for each in found)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (nothing, []),
        (late_rows, [(rows, rows - 8) for rows in ROWS if rows > 8]),
    ],
)
def test_what_is_wrong_in_fp8_is_found(fault, wrong):
    model = Faulty(InNumPy(FP8_PRODUCTS), fault)
    found = wrong_products(model, CPU(), FP8_PRODUCTS, DType.bfloat16)
    for product in FP8_PRODUCTS:
        assert of(found, product) == wrong, product


def config_of(folder, devices=1, encoding="bfloat16"):
    return MistralConfig.initialize(
        make_pipeline_config(
            folder,
            device_specs=[DeviceSpec.accelerator(i) for i in range(devices)],
            quantization_encoding=encoding,
            weight_path=[folder / "model.safetensors"],
        )
    )


def test_the_products_of_a_model(tmp_path):
    wide = BASE | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    write_checkpoint(tmp_path, wide, dtype="bfloat16")
    hidden, mlp, vocabulary = (
        wide[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    config = config_of(tmp_path)
    # So that nothing is added to what o_proj and down_proj give before the next norm.
    assert carries_delta(config)
    assert products(config) == [
        Product(vocabulary, hidden, "float32", is_head=True),
        Product((8 + 2 + 2) * 64, hidden),
        Product(hidden, 8 * 64),
        Product(2 * mlp, hidden, "swiglu"),
        Product(hidden, mlp),
    ]
    # On four devices each key-value head is there twice. Logits are cast when they
    # are gathered.
    assert products(config_of(tmp_path, devices=4)) == [
        Product(-(-vocabulary // 4), hidden, is_head=True),
        Product((2 + 1 + 1) * 64, hidden),
        Product(hidden, 2 * 64),
        Product(2 * (mlp // 4), hidden, "swiglu"),
        Product(hidden, mlp // 4),
    ]


def test_of_a_model_that_embeds_no_head(tmp_path):
    write_checkpoint(tmp_path, BASE, dtype="bfloat16")
    config = config_of(tmp_path)
    _, *rest = products(config)
    assert products(replace(config, embeds=True)) == rest


BLOCK = {
    "hidden": CONFIG["hidden_size"],
    "wide": CONFIG["intermediate_size"],
    "queries": CONFIG["num_attention_heads"] * CONFIG["head_dim"],
    "keys": CONFIG["num_key_value_heads"] * CONFIG["head_dim"],
}
HEAD = Product(CONFIG["vocab_size"], CONFIG["hidden_size"], "float32", is_head=True)


@pytest.mark.parametrize(
    "name", ["block", "channel", "native", "nvfp4", "modelopt_nvfp4"]
)
def test_of_a_quantized_model_the_head_and_what_is_not_quantized(tmp_path, name):
    for dense in (False, True):
        folder = tmp_path / str(dense)
        write_quantized(
            folder, LAYOUTS[name], dense=lambda n, d=dense: d and "layers.1.mlp" in n
        )
        with virtual_gpus("sm_100a"):
            pipeline_config = pipeline(folder)
            assert leaves_some_dense(pipeline_config) == dense
            config = MistralConfig.initialize(pipeline_config)
            assert config.quantization is not None
            found = products(config, some_dense=dense)
        assert found == [HEAD, *(block_products(**BLOCK) if dense else [])]


@pytest.mark.parametrize("name", ["channel", "static"])
@pytest.mark.parametrize("dense", [False, True])
def test_of_a_model_kept_in_fp8_its_products_in_fp8(tmp_path, monkeypatch, name, dense):
    write_quantized(tmp_path, LAYOUTS[name])
    monkeypatch.setenv("MAX_MISTRAL_FP8", "keep")
    with virtual_gpus("sm_90a"):
        config = config_of(tmp_path, encoding="float8_e4m3fn")
        head, *block = products(config, some_dense=dense)
    assert head == HEAD
    if dense:
        assert block[:4] == block_products(**BLOCK)
        block = block[4:]
    assert all(product.fp8 for product in block)
    hidden, wide, queries = (BLOCK[key] for key in ("hidden", "wide", "queries"))
    shapes = [(queries + 2 * BLOCK["keys"], hidden), (hidden, queries)]
    # Gate and up with one scale, and with two.
    shapes += [(2 * wide, hidden), *([(wide, hidden)] if name == "static" else [])]
    shapes += [(hidden, wide)]
    assert [(product.columns, product.terms) for product in block] == shapes
    # Q, K and V have a scale for each row, even where others have one.
    statics = [product.static for product in block]
    assert statics == [False, *[name == "static"] * (len(block) - 1)]


FINDINGS = {
    OWN: "gets 25 of the rows wrong",
    VENDOR: f"is not installed ({cublas.INSTALL})",
    MULTISTAGE: "does not run: no memory",
}


@pytest.mark.parametrize(
    ("right", "passed_over"),
    [
        ([OWN, VENDOR, MULTISTAGE], []),
        ([OWN], []),
        ([VENDOR, MULTISTAGE], [OWN]),
        ([MULTISTAGE], [OWN, VENDOR]),
    ],
)
def test_the_first_that_is_right_is_chosen(caplog, right, passed_over):
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        chosen = choose(list(FINDINGS), lambda m: None if m in right else FINDINGS[m])
    assert chosen is right[0]
    findings = "; ".join(f"{m} {FINDINGS[m]}" for m in passed_over)
    assert [record.message for record in caplog.records] == [
        f"{findings}; {chosen} runs instead. See modular/modular #6883."
        for _ in passed_over[:1]
    ]


def test_if_none_is_right_the_model_is_refused():
    with pytest.raises(UserError) as refusal:
        choose(list(FINDINGS), FINDINGS.get)
    for part in (
        "; ".join(f"{matmul} {found}" for matmul, found in FINDINGS.items()),
        *("#6883", f"Install NVIDIA's cuBLAS ({cublas.INSTALL}), give --quant"),
        "MAX_MISTRAL_SELF_CHECK=off starts anyway, with wrong answers.",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize("tried", [[OWN], [OWN, VENDOR, MULTISTAGE]])
def test_only_where_it_is_missing_cublas_is_named(tried):
    with pytest.raises(UserError, match="Give --quantization-encoding") as refusal:
        choose(tried, lambda matmul: "gets all rows wrong")
    assert "cuBLAS" not in str(refusal.value)


def test_the_package_with_cublas_is_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = project["optional-dependencies"]["hopper"]
    assert f"pip install '{needed}'" == cublas.INSTALL


@pytest.mark.parametrize(
    ("asked", "api", "order"),
    [
        (OWN, "cuda", [OWN, VENDOR, MULTISTAGE]),
        (VENDOR, "cuda", [VENDOR]),
        (MULTISTAGE, "cuda", [MULTISTAGE]),
        (OWN, "hip", [OWN]),
        (VENDOR, "hip", [VENDOR]),
    ],
)
def test_the_order(asked, api, order):
    assert choices_for(asked, api) == order


@pytest.fixture
def start(monkeypatch):
    """Returns a function that loads a model on a GPU whose matmuls are as it says.

    It returns the matmuls that were checked, and with which the model's graphs are
    compiled.
    """

    def start(
        wrong=(),
        asked="false",
        host=False,
        mefs=None,
        api="cuda",
        own=False,
        quantized=False,
        dense=False,
        every=PRODUCTS,
    ):
        checked, switched = [], []

        def finding(matmul, *_):
            checked.append(matmul)
            return "is wrong" if matmul in wrong else None

        def products(config, some_dense):
            return [*every, *(PRODUCTS if some_dense else [])]

        monkeypatch.setattr(matmuls, "_finding", finding)
        monkeypatch.setattr(matmuls, "products", products)
        monkeypatch.setattr(matmuls, "leaves_some_dense", lambda config: dense)
        monkeypatch.setattr(matmuls, "accelerator_api", lambda: api)
        monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
        monkeypatch.setattr(matmuls, "library", lambda: "multistage.mojoc")
        runtime = SimpleNamespace(use_vendor_blas=asked, precompiled_mefs=mefs)
        libraries = use_right_matmul(
            SimpleNamespace(
                needs_own_matmul=own,
                quantization="FP8" if own or quantized else None,
                step_tokens=None,
            ),
            SimpleNamespace(runtime=runtime),
            SimpleNamespace(_use_vendor_blas=switched.append),
            SimpleNamespace(is_host=host),
        )
        used = [VENDOR for _ in switched] + [MULTISTAGE for _ in libraries]
        return checked, used or [OWN]

    return start


def test_the_model_is_compiled_with_it(start):
    assert start() == ([OWN], [OWN])
    assert start(wrong=[OWN]) == ([OWN, VENDOR], [VENDOR])
    every = [OWN, VENDOR, MULTISTAGE]
    assert start(wrong=[OWN, VENDOR]) == (every, [MULTISTAGE])
    assert start(asked="true") == ([VENDOR], [VENDOR])
    with pytest.raises(UserError, match="answers would be wrong"):
        start(wrong=every)
    with pytest.raises(UserError, match="answers would be wrong"):
        start(wrong=[VENDOR], asked="true")


def test_what_was_checked_is_said(start, caplog):
    with caplog.at_level(logging.INFO, "max.pipelines"):
        start()
        start(own=True)
        start(quantized=True)
        assert start(quantized=True, every=[]) == ([], [OWN])
    assert start(quantized=True, every=[], dense=True) == ([OWN], [OWN])
    dense, own, quantized, nothing = (record.message for record in caplog.records)
    assert "this model's products as it should" in dense
    assert "1 to 2048 rows" in dense
    assert "this model's products as it should" in own
    assert "(those of quantized weights are not checked)" in quantized
    assert "has checked nothing" in nothing
    assert "as it should" not in nothing


def test_the_multistage_gemm_is_asked_for(start, monkeypatch):
    monkeypatch.setenv("MAX_MISTRAL_MATMUL", "multistage")
    assert start() == ([MULTISTAGE], [MULTISTAGE])
    assert start(mefs="folder") == ([MULTISTAGE], [MULTISTAGE])
    with pytest.raises(UserError, match="answers would be wrong"):
        start(wrong=[MULTISTAGE])
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", "off")
    assert start() == ([], [MULTISTAGE])
    # Compiled for a GPU that is not here.
    monkeypatch.delenv("MAX_MISTRAL_SELF_CHECK")
    monkeypatch.setattr(matmuls, "is_virtual_device_mode", lambda: True)
    assert start() == ([], [MULTISTAGE])


def test_fp8_that_is_kept_needs_our_kernels(start, monkeypatch):
    assert start(own=True) == ([MULTISTAGE], [MULTISTAGE])
    with pytest.raises(UserError, match="leave MAX_MISTRAL_FP8=keep out"):
        start(own=True, wrong=[MULTISTAGE])
    with pytest.raises(UserError, match="MAX_MISTRAL_FP8=keep and --use-vendor-blas"):
        start(own=True, asked="true")


@pytest.mark.parametrize(
    ("value", "where", "message"),
    [
        ("", {}, "MAX_MISTRAL_MATMUL is '.*to max or multistage"),
        ("Multistage", {"host": True}, "MAX_MISTRAL_MATMUL is '.*to max or multistage"),
        ("multistage", {"asked": "true"}, "two matmuls"),
        ("multistage", {"host": True}, "NVIDIA's GPUs.* a CPU"),
        ("multistage", {"api": "hip"}, "NVIDIA's GPUs.* hip"),
    ],
)
def test_the_multistage_gemm_is_refused(start, monkeypatch, value, where, message):
    monkeypatch.setenv("MAX_MISTRAL_MATMUL", value)
    with pytest.raises(UserError, match=message):
        start(**where)


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ([OWN], "--use-vendor-blas true"),
        ([OWN, VENDOR], "MAX_MISTRAL_MATMUL=multistage"),
    ],
)
def test_what_was_compiled_before_cannot_be_switched(start, wrong, flag):
    with pytest.raises(UserError, match=f"--precompiled-mefs.*{flag}"):
        start(wrong=wrong, mefs="folder")
    assert start(mefs="folder") == ([OWN], [OWN])
    assert start(asked="true", mefs="folder") == ([VENDOR], [VENDOR])


def test_nothing_is_checked_on_a_cpu_or_where_it_is_off(start, monkeypatch):
    assert start(wrong=[OWN], host=True) == ([], [OWN])
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", "off")
    assert start(wrong=[OWN]) == ([], [OWN])
    assert start(asked="true") == ([], [VENDOR])


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("value", ["", "On", "0", "false"])
def test_another_value_is_refused(start, monkeypatch, value, host):
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", value)
    with pytest.raises(UserError, match=r"MAX_MISTRAL_SELF_CHECK is .* to on or off"):
        start(host=host)


def test_what_is_said_of_wrong_products():
    wrong = [Wrong(Product(28672, 5120), rows, rows - 8) for rows in (33, 41)]
    said = "gets 25 of the rows for (M, K, N) = (33, 5120, 28672) wrong"
    assert matmuls.describe(wrong[:1]) == said
    assert matmuls.describe(wrong) == f"{said}, and 1 more like it"
    assert matmuls.describe([]) is None


@pytest.fixture
def finding(monkeypatch):
    """Returns a function that checks a matmul in a function of the test's."""

    def finding(matmul, check):
        session = SimpleNamespace(_use_vendor_blas=lambda _: None)
        monkeypatch.setattr(matmuls, "InferenceSession", lambda devices: session)
        monkeypatch.setattr(matmuls, "wrong_products", lambda *_: check())
        config = SimpleNamespace(dtype=DType.bfloat16, step_tokens=None)
        pipeline_config = SimpleNamespace(configure_session=lambda _: None)
        return matmuls._finding(matmul, PRODUCTS, config, pipeline_config, None)

    monkeypatch.setattr(matmuls, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
    monkeypatch.setattr(matmuls, "library", lambda: Path("multistage.mojoc"))
    return finding


def test_a_matmul_that_fails_is_a_finding(finding, monkeypatch):
    def fails():
        raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")

    for matmul in (VENDOR, MULTISTAGE):
        found = finding(matmul, fails)
        assert found == "does not run: CUBLAS_STATUS_NOT_INITIALIZED"
    with pytest.raises(RuntimeError):
        finding(OWN, fails)
    monkeypatch.setattr(matmuls, "load_cublas", lambda: None)
    found = finding(VENDOR, fails)
    assert found == FINDINGS[VENDOR]


def test_the_kernels_for_gpus_compile():
    # As far as this MAX's toolchain does without knowing which GPU.
    assert gpu_kernels.library().exists()


def test_only_the_multistage_gemm_is_checked_with_its_kernels(finding):
    seen = []
    for matmul in FINDINGS:
        assert finding(matmul, lambda: seen.append(default_custom_extensions())) is None
    assert seen == [(), (), (Path("multistage.mojoc"),)]


@pytest.mark.parametrize(
    ("present", "loaded"),
    [
        ({"libcublas.so.12", "libcublasLt.so.12"}, "libcublas.so.12"),
        ({"libcublas.so.13", "libcublasLt.so.13"}, "libcublas.so.13"),
        # One without the other is of no use.
        ({"libcublas.so.13"}, None),
        (set(), None),
    ],
)
@pytest.mark.parametrize("is_package", [True, False])
def test_cublas_is_found(monkeypatch, tmp_path, present, loaded, is_package):
    opened = []

    def load(path, mode):
        folder, _, name = str(path).rpartition("/")
        if name not in present or folder != (str(tmp_path) if is_package else ""):
            raise OSError(f"{path}: cannot open shared object file")
        opened.append(path)

    def files(package):
        if package == "nvidia-cublas" and is_package:
            return [
                SimpleNamespace(name=name, locate=lambda name=name: tmp_path / name)
                for name in ("libnvblas.so.13", "libcublas.so.13", "libcublas.so.12")
            ]
        raise cublas.PackageNotFoundError(package)

    monkeypatch.setattr(cublas.ctypes, "CDLL", load)
    monkeypatch.setattr(cublas, "files", files)
    found = cublas.load_cublas()
    if is_package and loaded == "libcublas.so.12":
        assert found is None  # it would be in the other package
    elif loaded is None:
        assert found is None
    else:
        assert found == (str(tmp_path / loaded) if is_package else loaded)
        assert len(opened) == 2
        assert opened[-1] == found
