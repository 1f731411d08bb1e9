"""The self-check of GPUs: on a CPU, with faults such as a GPU's."""

import logging
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from max.driver import CPU, DeviceSpec
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_mistral import MistralConfig, cublas, matmuls
from max_mistral.errors import UserError
from max_mistral.matmuls import OWN, VENDOR, choices_for, choose, use_right_matmul
from max_mistral.self_check import (
    ROWS,
    Product,
    Wrong,
    check_graph,
    products,
    wrong_products,
)
from workbench.checkpoints import BASE, write_checkpoint
from workbench.quantized import LAYOUTS, write_quantized
from workbench.runner import make_pipeline_config

PRODUCTS = [
    Product(256, 96, "residual"),
    Product(320, 96, "swiglu"),
    Product(136, 96, "float32"),
]


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
        (every_row, [(1, max(ROWS))]),
    ],
)
def test_what_is_wrong_is_found(model, fault, wrong):
    found = wrong_products(Faulty(model, fault), CPU(), PRODUCTS, DType.bfloat16)
    for product in PRODUCTS:
        rows = [
            (each.rows, each.wrong_rows) for each in found if each.product == product
        ]
        assert rows == wrong, product


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
    assert products(config_of(tmp_path)) == [
        Product(vocabulary, hidden, "float32"),
        Product((8 + 2 + 2) * 64, hidden),
        Product(hidden, 8 * 64, "residual"),
        Product(2 * mlp, hidden, "swiglu"),
        Product(hidden, mlp, "residual"),
    ]
    # On four devices each key-value head is there twice.
    assert products(config_of(tmp_path, devices=4)) == [
        Product(-(-vocabulary // 4), hidden, "float32"),
        Product((2 + 1 + 1) * 64, hidden),
        Product(hidden, 2 * 64),
        Product(2 * (mlp // 4), hidden, "swiglu"),
        Product(hidden, mlp // 4),
    ]


def test_of_a_quantized_model_the_head(tmp_path):
    write_quantized(tmp_path, LAYOUTS["block"])
    (head,) = products(config_of(tmp_path, encoding="float8_e4m3fn"))
    assert head.then == "float32"


FINDINGS = {OWN: "gets 25 of the rows wrong", VENDOR: "does not run: no handle"}


@pytest.mark.parametrize(
    ("right", "chosen"), [({OWN, VENDOR}, OWN), ({OWN}, OWN), ({VENDOR}, VENDOR)]
)
def test_the_first_that_is_right_is_chosen(caplog, right, chosen):
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        assert (
            choose([OWN, VENDOR], lambda m: None if m in right else FINDINGS[m])
            is chosen
        )
    said = [record.message for record in caplog.records]
    expected = f"{OWN} {FINDINGS[OWN]}; {VENDOR} runs instead"
    assert len(said) == (chosen is VENDOR)
    assert all(message.startswith(expected) for message in said)


def test_if_none_is_right_the_model_is_refused():
    with pytest.raises(UserError) as refusal:
        choose([OWN, VENDOR], FINDINGS.get)
    for part in (
        *(f"{OWN} {FINDINGS[OWN]}; {VENDOR} {FINDINGS[VENDOR]}", "#6883"),
        *("pip install 'max_mistral[hopper]'", "MAX_MISTRAL_SELF_CHECK=off"),
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "api", "order"),
    [
        (False, "cuda", [OWN, VENDOR]),
        (True, "cuda", [VENDOR]),
        (False, "hip", [OWN]),
        (True, "hip", [VENDOR]),
    ],
)
def test_the_order(asked, api, order):
    assert choices_for(asked, api) == order


@pytest.fixture
def start(monkeypatch):
    """Returns a function that loads a model on a GPU whose matmuls are as it says.

    It returns the matmuls that were checked, and whether the model's session
    compiles with the vendor's.
    """

    def start(wrong=(), asked="false", host=False, mefs=None):
        checked, switched = [], []

        def finding(matmul, *_):
            checked.append(matmul)
            return "is wrong" if matmul in wrong else None

        monkeypatch.setattr(matmuls, "_finding", finding)
        monkeypatch.setattr(matmuls, "accelerator_api", lambda: "cuda")
        monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
        runtime = SimpleNamespace(use_vendor_blas=asked, precompiled_mefs=mefs)
        use_right_matmul(
            None,
            SimpleNamespace(runtime=runtime),
            SimpleNamespace(_use_vendor_blas=switched.append),
            SimpleNamespace(is_host=host),
        )
        return checked, bool(switched)

    return start


def test_the_models_session_is_switched(start):
    assert start() == ([OWN], False)
    assert start(wrong=[OWN]) == ([OWN, VENDOR], True)
    assert start(asked="true") == ([VENDOR], True)
    with pytest.raises(UserError, match="answers would be wrong"):
        start(wrong=[OWN, VENDOR])


def test_what_was_compiled_before_cannot_be_switched(start):
    with pytest.raises(UserError, match="--precompiled-mefs"):
        start(wrong=[OWN], mefs="folder")
    assert start(mefs="folder") == ([OWN], False)
    assert start(asked="true", mefs="folder") == ([VENDOR], True)


def test_nothing_is_checked_on_a_cpu_or_where_it_is_off(start, monkeypatch):
    assert start(wrong=[OWN], host=True) == ([], False)
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", "off")
    assert start(wrong=[OWN]) == ([], False)
    assert start(asked="true") == ([], True)


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


def test_a_vendors_blas_that_fails_is_a_finding(monkeypatch):
    def fails(*_):
        raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")

    session = SimpleNamespace(_use_vendor_blas=lambda _: None)
    monkeypatch.setattr(matmuls, "InferenceSession", lambda devices: session)
    monkeypatch.setattr(matmuls, "products", lambda _: [])
    monkeypatch.setattr(matmuls, "wrong_products", fails)
    monkeypatch.setattr(matmuls, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
    config = SimpleNamespace(dtype=DType.bfloat16)
    pipeline_config = SimpleNamespace(configure_session=lambda _: None)
    arguments = (config, pipeline_config, None)
    assert matmuls._finding(VENDOR, *arguments) == (
        "does not run: CUBLAS_STATUS_NOT_INITIALIZED"
    )
    with pytest.raises(RuntimeError):
        matmuls._finding(OWN, *arguments)
    monkeypatch.setattr(matmuls, "load_cublas", lambda: None)
    assert matmuls._finding(VENDOR, *arguments) == "is not installed"


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
