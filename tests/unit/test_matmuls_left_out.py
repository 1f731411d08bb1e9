"""What ``make check-gpu`` leaves out where a matmul cannot run, without a GPU."""

import json
import sys

import pytest

from benchmarks import gpu, matmul
from max_mistral.gpu_matmul.asked import MULTISTAGE, OWN, VENDOR
from tests.gpu import test_matmul as on_gpu
from workbench import check_device

CUBLAS = "libcublas.so.13"
FOR_NVIDIA = "its kernels are for NVIDIA's GPUs, not for hip"


@pytest.fixture
def here(monkeypatch):
    """Says which GPUs are here, and which cuBLAS."""

    def here(api, cublas):
        monkeypatch.setattr(matmul, "accelerator_api", lambda: api)
        monkeypatch.setattr(matmul, "load_cublas", lambda: cublas)

    return here


@pytest.mark.parametrize(
    ("api", "cublas", "left_out"),
    [
        ("cuda", CUBLAS, []),
        ("cuda", None, ["ceilings", "cublas"]),
        # It has a BLAS of its own.
        ("hip", None, ["multistage", "fp8"]),
    ],
)
def test_what_the_benchmark_measures(
    monkeypatch, capsys, tmp_path, here, api, cublas, left_out
):
    measured = []

    def ceilings(device):
        measured.append("ceilings")
        return {"bytes/s": 1e12, "operations/s": 1e15}

    def measure(name, config, parts):
        measured.append(name)
        seconds = {str(rows): 1e-3 for rows in matmul.ROWS}
        return {"wrong": [], "says": [], "check_seconds": 1.0, "seconds": seconds}

    def in_process(name, *_, module, shown):
        return matmul.figures(name, {})

    here(api, cublas)
    monkeypatch.setattr(check_device, "device", lambda: None)
    monkeypatch.setattr(matmul, "ceilings", ceilings)
    monkeypatch.setattr(matmul, "measure", measure)
    monkeypatch.setattr(matmul, "in_process", in_process)
    path = tmp_path / "matmuls.json"
    monkeypatch.setattr(sys, "argv", ["matmul", "--json", str(path)])
    # No failure: it would exit.
    matmul.main()
    every = ["ceilings", *matmul.MATMULS]
    assert measured == [name for name in every if name not in left_out]
    found = json.loads(path.read_text())
    assert [name for name in every if "left_out" in found[name]] == left_out
    printed = capsys.readouterr().out
    assert [name for name in every if f"{name} is left out: " in printed] == left_out
    unknown = "What the GPU reaches was not measured." in printed
    assert unknown == ("ceilings" in left_out)


def test_a_process_says_what_is_left_out(monkeypatch, capsys, here):
    here("hip", None)
    monkeypatch.setattr(sys, "argv", ["matmul", "multistage"])
    matmul.main()
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "failed": f"multistage is left out: {FOR_NVIDIA}.",
        "left_out": True,
    }


def test_speeds_do_without_the_ceilings(here):
    here("cuda", None)
    said = gpu.shares_text({}, matmul.figures("ceilings", {}))
    assert "No shares of the GPU" in said
    assert "no cuBLAS here" in said


class ToldError(Exception):
    """Ends a measurement where the session is told its matmul."""


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("own", (OWN, False)),
        ("multistage", (MULTISTAGE, False)),
        ("fp8", (MULTISTAGE, True)),
    ],
)
def test_fp8_alone_takes_our_kernels_for_fp8(monkeypatch, name, asked):
    def compile_with(which, session, every, *, fp8=False):
        raise ToldError(which, fp8)

    monkeypatch.setattr(check_device, "device", lambda: None)
    monkeypatch.setattr(matmul, "InferenceSession", lambda devices: None)
    monkeypatch.setattr(matmul, "compile_with", compile_with)
    with pytest.raises(ToldError) as told:
        matmul.measure(name, matmul.read(matmul.CONFIG))
    assert told.value.args == asked


@pytest.mark.parametrize(
    ("variable", "value", "api", "reason"),
    [
        ("MAX_MISTRAL_MATMUL", "multistage", "hip", f"{MULTISTAGE}: {FOR_NVIDIA}"),
        ("MAX_MISTRAL_VENDOR_BLAS", "1", "cuda", f"{VENDOR}: no cuBLAS here"),
    ],
)
def test_a_matmul_that_cannot_run_is_skipped(
    monkeypatch, here, variable, value, api, reason
):
    for name in ("MAX_MISTRAL_MATMUL", "MAX_MISTRAL_VENDOR_BLAS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    here(api, None)
    with pytest.raises(pytest.skip.Exception, match=reason):
        on_gpu.skip_if_missing()


@pytest.mark.parametrize(
    ("which", "api", "cublas"),
    [
        (OWN, "cuda", None),
        (OWN, "hip", None),
        (VENDOR, "cuda", CUBLAS),
        (VENDOR, "hip", None),
        (MULTISTAGE, "cuda", None),
    ],
)
def test_what_can_run(here, which, api, cublas):
    here(api, cublas)
    assert matmul.missing(which) is None
