"""The dry run of ``scripts/check_gpu.py``: what it does of each step.

``tests/e2e/test_dry_run.py`` runs some of them.
"""

import dataclasses
import sys
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from max.driver import CPU

from benchmarks import gpu, gpu_engines, matmul, matmul_ceilings
from max_mistral import switches
from scripts import check_gpu, gpu_run, gpu_steps
from tests.gpu.test_quantized import is_restored, limits, operands, products
from tests.harness import relative_error
from tests.unit import test_self_check
from workbench import check_device
from workbench.quantized import FP8_LAYOUTS, LAYOUTS, write_quantized
from workbench.quantizers import FP8 as E4M3

# Those that a dry run may leave out; each of the others has to run to its end.
LEFT_OUT = {
    *(f"matmul-{n}{wide}" for n in ("cublas", "multistage") for wide in ("", "-wide")),
    *(f"{part}-{n}" for part in ("check", "time") for n in ("multistage", "fp8")),
    *("speed-transformers", "speed-vLLM", "serving-vllm"),
    *(f"quantized-{n}" for n in LAYOUTS if n not in FP8_LAYOUTS),
    *(f"quantized-{n}-kept" for n in FP8_LAYOUTS),
}


def test_each_step_runs_or_says_what_it_lacks(tmp_path):
    every = list(gpu_steps.steps(tmp_path))
    assert {step.name for step in every if step.lacks} == LEFT_OUT
    for step in every:
        command = step.dry or step.command
        assert "--help" not in command, step.name
        # The same program and file, with other arguments at most.
        assert command[:3] == step.command[:3], step.name


def test_only_the_servers_are_asked_otherwise(tmp_path):
    other = {step.name for step in gpu_steps.steps(tmp_path) if step.dry}
    assert other == {"serving", "serving-max"}


def step(code, **fields):
    return gpu_steps.Step("asked", "?", [sys.executable, "-c", code], **fields)


@pytest.mark.parametrize(
    ("lacks", "flags", "status"),
    [
        ("", ["--dry-run"], "Not as it should be: asked (left out)."),
        ("a GPU's BLAS", ["--dry-run"], 0),
        # On a GPU it says for itself what it lacks.
        ("", [], 0),
    ],
)
def test_what_is_left_out_has_to_say_so(monkeypatch, tmp_path, lacks, flags, status):
    """Or a dry run in which everything is left out would look like a good one."""
    made = {"gpu": "none", "commit": "1234", "max": "26.7.0"}
    monkeypatch.setattr(check_gpu, "origin", lambda dry: made)
    absent = step("raise SystemExit(77)", lacks=lacks)
    monkeypatch.setattr(check_gpu, "steps", lambda out, dry: iter([absent]))
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--out", str(tmp_path), *flags])
    if status:
        with pytest.raises(SystemExit) as end:
            check_gpu.main()
        assert end.value.code == status
    else:
        check_gpu.main()


@pytest.mark.parametrize(("dry", "found"), [(True, "cpu"), (False, "None")])
def test_only_a_dry_run_chooses_the_cpu(monkeypatch, dry, found):
    """Whatever the shell says."""
    monkeypatch.setenv(check_device.VARIABLE, "the shell's")
    code = f"import os; print(os.environ.get({check_device.VARIABLE!r}))"
    assert gpu_run.run(step(code), dry=dry, seconds=60).output == found


def test_another_device_is_refused(monkeypatch):
    monkeypatch.setenv(check_device.VARIABLE, "tpu")
    with pytest.raises(ValueError, match=r"'tpu'\. Set it to cpu to check"):
        check_device.is_dry()


def test_the_flags_of_each_device(monkeypatch):
    monkeypatch.delenv(check_device.VARIABLE, raising=False)
    flags = check_device.flags("bfloat16")
    assert flags["device_specs"][0].device_type == "gpu"
    assert flags["quantization_encoding"] == "bfloat16"
    monkeypatch.setenv(check_device.VARIABLE, "cpu")
    flags = check_device.flags("bfloat16")
    assert flags["device_specs"][0].device_type == "cpu"
    assert flags["quantization_encoding"] == flags["kv_cache_format"] == "float32"
    assert isinstance(check_device.device(), CPU)


def test_few_shapes_are_compiled(monkeypatch):
    monkeypatch.setenv(check_device.VARIABLE, "cpu")
    _, *layer = matmul.products(matmul.read(matmul.CONFIG))
    assert len({(product.columns, product.terms) for product in layer}) == 2


def test_on_a_gpu_the_sizes_are_those_of_the_model(monkeypatch):
    monkeypatch.delenv(check_device.VARIABLE, raising=False)
    assert matmul.read(matmul.CONFIG)["hidden_size"] == 4096


def test_transformers_need_no_cuda_in_a_dry_run(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "ask", lambda code: asked.append(code) or "True")
    for device in ("gpu", "cpu"):
        monkeypatch.setenv(check_device.VARIABLE, device)
        assert gpu.missing("transformers") is None
    assert ["cuda" in code for code in asked] == [True, False]


def test_what_is_measured_in_fp8(monkeypatch):
    """A CPU has no such product: NumPy's stand for it."""
    monkeypatch.setenv(check_device.VARIABLE, "cpu")
    config = matmul.read(matmul.CONFIG) | {"vocab_size": 128}
    session = test_self_check.InNumPy(matmul.products(config, "fp8"))
    monkeypatch.setattr(matmul, "InferenceSession", lambda devices: session)
    monkeypatch.setattr(matmul, "compile_with", lambda *_, **flags: [])
    monkeypatch.setattr(matmul_ceilings, "SECONDS", 0)
    monkeypatch.setattr(matmul, "ROWS", (1, 64))
    found = matmul.measure("fp8", config)
    assert found["wrong"] == []
    assert list(found["seconds"]) == ["1", "64"]
    assert all(taken > 0 for taken in found["seconds"].values())


class Counted:
    """A device and a run of it, which count."""

    def __init__(self):
        self.calls = Counter()

    def run(self):
        self.calls["run"] += 1

    def synchronize(self):
        self.calls["synchronize"] += 1


def test_a_time_is_that_of_many_runs(monkeypatch):
    """Of which the device is waited for once."""
    clock = iter([0.0, 1.0] + [0.0, 6.0] * 5)
    monkeypatch.setattr(matmul_ceilings.time, "perf_counter", lambda: next(clock))
    device = Counted()
    assert matmul.seconds(device.run, device) == 2.0
    # One that warms up, one that says how many, and five times three.
    assert device.calls == {"run": 2 + 5 * 3, "synchronize": 2 + 5}


def test_a_share_of_the_gpus_memory(monkeypatch, tmp_path):
    """Of a GPU that has 80 GB, what 24 GB are; a CPU's is MAX's to say."""
    made = []

    class Runner:
        def __init__(self, folder, return_logits, flags, arch):
            made.append((folder.name, flags, arch.name))
            raise InterruptedError

    monkeypatch.setattr("workbench.runner.Runner", Runner)
    monkeypatch.setattr(gpu_engines, "stock", lambda folder: folder / "llama")
    stats = {"total_memory": 80e9}
    gpu_80 = dataclasses.make_dataclass("Device", ["stats"])(stats)
    monkeypatch.setattr(
        check_device, "device", lambda: gpu_80 if not check_device.is_dry() else None
    )
    for device in ("gpu", "cpu"):
        monkeypatch.setenv(check_device.VARIABLE, device)
        for name in ("max_mistral", gpu_engines.BASE):
            with pytest.raises(InterruptedError):
                gpu_engines.OnGpu(tmp_path / "mistral", name)
    shares = [flags.get("device_memory_utilization") for _, flags, _ in made]
    assert shares == [0.3, 0.3, None, None]
    assert [folder for folder, _, _ in made] == ["mistral"] * 3 + ["llama"]
    assert made[3][2] == "LlamaForCausalLM"
    assert [flags["custom_architectures"] for _, flags, _ in made] == [
        ["max_mistral"],
        [],
    ] * 2


@pytest.mark.parametrize(
    ("gpu", "kept", "restored"),
    [
        ("sm_90a", "bfloat16", True),
        ("sm_90a", "keep", False),
        ("sm_100a", "bfloat16", False),
        ("gfx950", "bfloat16", False),
    ],
)
def test_what_is_to_be_restored(monkeypatch, gpu, kept, restored):
    monkeypatch.setattr("tests.gpu.test_quantized.gpu_architecture", lambda: gpu)
    monkeypatch.setenv(switches.FP8, kept)
    assert is_restored("static") == restored
    assert not is_restored("gptq")
    assert not is_restored("nvfp4")


def rounded(values, dtype):
    """Values as a dtype has them, under a scale of their own in FP8."""
    scale = np.abs(values).max() / 448 if dtype is E4M3 else 1
    return (values / scale).astype(dtype).astype(np.float32) * scale


@pytest.mark.parametrize("name", FP8_LAYOUTS)
def test_what_is_restored_is_held_to_bfloat16(tmp_path, name):
    """Neither activations in FP8 nor a scale that is 5 % off are let through."""
    worth = write_quantized(tmp_path, LAYOUTS[name])
    x, y = operands(64)
    wants = products(x, y, worth)

    def off(x, y, worth):
        found = zip(products(x, y, worth), wants, strict=True)
        return [relative_error(got, want) for got, want in found]

    in_bfloat16 = {n: rounded(w, ml_dtypes.bfloat16) for n, w in worth.items()}
    scaled = {n: w * np.float32(1.05) for n, w in worth.items()}
    kept = off(rounded(x, E4M3), rounded(y, E4M3), worth)
    allowed, allowed_in_fp8 = (
        list(limits(LAYOUTS[name], restored).values()) for restored in (True, False)
    )
    assert np.less(off(x, y, in_bfloat16), allowed).all()
    assert np.greater(off(x, y, scaled), allowed).all()
    assert np.greater(kept, allowed).all()
    assert np.less(kept, allowed_in_fp8).all()
