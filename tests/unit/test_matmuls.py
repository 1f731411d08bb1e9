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
from max_mistral.gpu_matmul import asked as asked_module
from max_mistral.gpu_matmul import cublas, matmuls, slow_products
from max_mistral.gpu_matmul.asked import MULTISTAGE, OWN, VENDOR, choices_for, mends
from max_mistral.gpu_matmul.matmuls import choose, use_right_matmul
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
        choose(list(FINDINGS), FINDINGS.get, ["give A", "leave B out"])
    for part in (
        "; ".join(f"{matmul} {found}" for matmul, found in FINDINGS.items()),
        *("#6883", f"Install NVIDIA's cuBLAS ({cublas.INSTALL}), or give A, or leave"),
        "MAX_MISTRAL_SELF_CHECK=off starts anyway, with wrong answers.",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize("tried", [[OWN], [OWN, VENDOR, MULTISTAGE]])
def test_only_where_it_is_missing_cublas_is_named(tried):
    with pytest.raises(UserError, match=r"wrong rows.*#7146\. Give A\. MAX") as refusal:
        choose(tried, lambda matmul: "gets wrong rows", ["give A"])
    assert "cuBLAS" not in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "kinds", "wanted"),
    [
        (OWN, {}, ["give --quantization-encoding float32"]),
        (OWN, {"dtype": DType.float32}, []),
        (OWN, {"quantization": "GPTQ"}, []),
        # FP8 that became bfloat16.
        (OWN, {"restored": True}, []),
        (
            VENDOR,
            {},
            [
                "leave --use-vendor-blas true out",
                "give --quantization-encoding float32",
            ],
        ),
        (
            MULTISTAGE,
            {"dtype": DType.float32},
            ["leave MAX_MISTRAL_MATMUL=multistage out"],
        ),
        (
            MULTISTAGE,
            {"quantization": "FP8", "needs_own_matmul": True},
            ["leave MAX_MISTRAL_FP8=keep out"],
        ),
    ],
)
def test_only_what_can_be_done_is_advised(asked, kinds, wanted):
    config = {
        "quantization": None,
        "restored": False,
        "dtype": DType.bfloat16,
        "needs_own_matmul": False,
    }
    assert mends(asked, SimpleNamespace(**config | kinds)) == wanted


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
        has_cublas=True,
        gpu="sm_90a",
        defined=None,
    ):
        checked, switched, fp8_kernels = [], [], []
        defines = [] if defined is None else defined

        def finding(matmul, *_):
            checked.append(matmul)
            return "is wrong" if matmul in wrong else None

        def products(config, some_dense):
            return [*every, *(PRODUCTS if some_dense else [])]

        monkeypatch.setattr(matmuls, "_finding", finding)
        monkeypatch.setattr(matmuls, "products", products)
        monkeypatch.setattr(matmuls, "leaves_some_dense", lambda config: dense)
        found = "libcublas.so.13" if has_cublas else None
        for module in (matmuls, slow_products):
            monkeypatch.setattr(module, "load_cublas", lambda: found)
            monkeypatch.setattr(module, "gpu_architecture", lambda: gpu)
        for module in (asked_module, matmuls, slow_products):
            monkeypatch.setattr(module, "accelerator_api", lambda: api)
        monkeypatch.setattr(matmuls, "library", lambda fp8: fp8_kernels.append(fp8))
        runtime = SimpleNamespace(use_vendor_blas=asked, precompiled_mefs=mefs)
        libraries = use_right_matmul(
            SimpleNamespace(
                needs_own_matmul=own,
                quantization="FP8" if own or quantized else None,
                restored=False,
                dtype=DType.bfloat16,
                step_tokens=None,
                embeds=False,
            ),
            SimpleNamespace(runtime=runtime),
            SimpleNamespace(
                _use_vendor_blas=switched.append,
                _set_mojo_define=lambda *define: defines.append(define),
            ),
            [SimpleNamespace(is_host=host)] * 2,
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


# What a GPU has fast kernels for: of the shapes of a 7B model.
LARGE = [Product(28672, 4096, "swiglu"), Product(32768, 4096, is_head=True)]
ODD = Product(32001, 4096, "float32", is_head=True)


def test_what_was_checked_is_said(start, caplog):
    with caplog.at_level(logging.INFO, "max.pipelines"):
        start(every=LARGE)
        start(own=True, every=LARGE)
        start(quantized=True, every=LARGE)
        assert start(quantized=True, every=[]) == ([], [OWN])
    assert start(quantized=True, every=[], dense=True) == ([OWN], [OWN])
    said = [record.message for record in caplog.records]
    # Before it hangs, and after it is right.
    assert "compiles and runs 2 products with MAX's own matmul. MAX_MIS" in said[0]
    dense, own, quantized, nothing = said[1], said[3], said[5], said[6]
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


@pytest.mark.parametrize("checks", ["on", "off"])
@pytest.mark.parametrize(
    ("product", "gpu", "slow"),
    [
        # A head that does not divide into tiles: of 32,001 words, or of 32,000 on
        # four GPUs.
        (ODD, "sm_80", True),
        (Product(8000, 4096, is_head=True), "sm_89", True),
        (ODD, "sm_120a", True),
        (ODD, "sm_90a", False),
        (ODD, "sm_100a", False),
        (LARGE[1], "sm_80", False),
    ],
)
def test_without_cublas_max_does_not_look_for_it(
    start, monkeypatch, caplog, product, gpu, slow, checks
):
    """MAX's own matmul calls it for such products; not there, the process ends."""
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", checks)
    for has_cublas in (True, False):
        defined = []
        caplog.clear()
        every = [*LARGE, product]
        _, used = start(every=every, gpu=gpu, has_cublas=has_cublas, defined=defined)
        assert used == [OWN]
        told = slow and not has_cublas
        define = ("MODULAR_DISABLE_VENDOR_FALLBACK", "true")
        assert defined == ([define] if told else [])
        assert [record.message for record in caplog.records] == [
            f"MAX's own matmul has no fast kernel for products of (K, N) = (4096, "
            f"{product.columns}): MAX's slowest one computes them where a step has "
            f"more than one row. With cuBLAS they are fast: {cublas.INSTALL}"
        ] * told
    if slow:
        with pytest.raises(UserError, match=r"call cuBLAS for .*is not installed"):
            start(every=every, gpu=gpu, has_cublas=False, mefs="folder")


def test_the_check_itself_does_not_look_for_cublas(monkeypatch):
    """Or it would end the process before it had found anything."""
    for module in (matmuls, slow_products):
        monkeypatch.setattr(module, "accelerator_api", lambda: "cuda")
        monkeypatch.setattr(module, "load_cublas", lambda: None)
    monkeypatch.setattr(slow_products, "gpu_architecture", lambda: "sm_80")
    defined = []
    session = SimpleNamespace(_set_mojo_define=lambda *define: defined.append(define))
    monkeypatch.setattr(matmuls, "InferenceSession", lambda devices: session)
    monkeypatch.setattr(matmuls, "wrong_products", lambda *_: [])
    config = SimpleNamespace(dtype=DType.bfloat16, needs_own_matmul=False)
    asked = SimpleNamespace(configure_session=lambda _: None)
    for product, wanted in (
        (LARGE[0], []),
        (ODD, [("MODULAR_DISABLE_VENDOR_FALLBACK", "true")]),
    ):
        found = matmuls._finding(OWN, [product], config, asked, [None], 8192, None)
        assert (found, defined) == (None, wanted)


def test_a_product_without_a_tile_of_the_multistage_gemm_is_named(
    start, monkeypatch, caplog
):
    monkeypatch.setenv("MAX_MISTRAL_MATMUL", "multistage")
    start(every=LARGE)
    assert not caplog.records
    start(every=[*LARGE, ODD])
    (record,) = caplog.records
    assert "GEMM has no fast kernel for products of (K, N) = (4096, 32001)" in (
        record.message
    )


def test_cublas_that_is_asked_for_has_to_be_there(start, monkeypatch):
    monkeypatch.setenv("MAX_MISTRAL_SELF_CHECK", "off")
    with pytest.raises(UserError, match=r"cuBLAS is not installed \(pip install"):
        start(asked="true", has_cublas=False)
    # AMD's has another.
    assert start(asked="true", has_cublas=False, api="hip") == ([], [VENDOR])


def test_fp8_that_is_kept_needs_our_kernels(start, monkeypatch):
    assert start(own=True) == ([MULTISTAGE], [MULTISTAGE])
    with pytest.raises(UserError, match="Leave MAX_MISTRAL_FP8=keep out"):
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
        return matmuls._finding(matmul, LARGE, config, asked, [None], 8192, None)

    monkeypatch.setattr(matmuls, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(matmuls, "load_cublas", lambda: "libcublas.so.13")
    monkeypatch.setattr(matmuls, "library", lambda fp8: Path("multistage.mojoc"))
    return finding


def test_a_matmul_that_fails_is_a_finding(finding, monkeypatch):
    def fails():
        raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")

    for matmul in FINDINGS:
        found = finding(matmul, fails)
        assert found == "does not run: CUBLAS_STATUS_NOT_INITIALIZED"
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
@pytest.mark.parametrize("place", ["package", "system", "/usr/local/cuda-13.0/lib64"])
def test_cublas_is_found(monkeypatch, tmp_path, present, loaded, place):
    is_package = place == "package"
    where = {"package": str(tmp_path), "system": ""}.get(place, place)
    opened = []

    def load(path, mode):
        folder, _, name = str(path).rpartition("/")
        if name not in present or folder != where:
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
    if place != "system" and loaded == "libcublas.so.12":
        assert found is None  # it would be in another package, or folder
    elif loaded is None:
        assert found is None
    else:
        assert found == (f"{where}/{loaded}" if where else loaded)
        assert len(opened) == 2
        assert opened[-1] == found
