"""Which matmul runs on a GPU, by what the self-check found of each."""

import logging
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from max.dtype import DType
from max.graph import default_custom_extensions

from max_mistral import gpu_kernels
from max_mistral.errors import UserError
from max_mistral.gpu_matmul import cublas, matmuls
from max_mistral.gpu_matmul.matmuls import (
    MULTISTAGE,
    OWN,
    VENDOR,
    choices_for,
    choose,
    use_right_matmul,
)
from max_mistral.gpu_matmul.products import Product
from max_mistral.gpu_matmul.self_check import Wrong
from tests.unit.test_self_check import PRODUCTS
from workbench.demo import ROOT

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
        checked, switched, fp8_kernels = [], [], []

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
        monkeypatch.setattr(matmuls, "library", lambda fp8: fp8_kernels.append(fp8))
        runtime = SimpleNamespace(use_vendor_blas=asked, precompiled_mefs=mefs)
        libraries = use_right_matmul(
            SimpleNamespace(
                needs_own_matmul=own,
                quantization="FP8" if own or quantized else None,
                step_tokens=None,
                embeds=False,
            ),
            SimpleNamespace(runtime=runtime),
            SimpleNamespace(_use_vendor_blas=switched.append),
            SimpleNamespace(is_host=host),
        )
        # MAX's own FP8 kernels know more than ours.
        assert set(fp8_kernels) <= {own}
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
    assert "1 to 8192 rows (the head with up to 256): checked in" in dense
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
        config = SimpleNamespace(dtype=DType.bfloat16, needs_own_matmul=False)
        asked = SimpleNamespace(configure_session=lambda _: None)
        return matmuls._finding(matmul, PRODUCTS, config, asked, None, 8192, None)

    monkeypatch.setattr(matmuls, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
    monkeypatch.setattr(matmuls, "library", lambda fp8: Path("multistage.mojoc"))
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
    dense, with_fp8 = (gpu_kernels.library(fp8=fp8) for fp8 in (False, True))
    # That the former has none for FP8 shows where it is used: see the case
    # "multistage-beside-fp8-block" of scripts/check_gpu_compile.py.
    assert dense.stat().st_size < with_fp8.stat().st_size


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
