"""The context that the max-mistral command takes: what fits the memory."""

import json

import pytest

from max_mistral.command import memory, picks
from max_mistral.command.checkpoint import read_checkpoint
from max_mistral.command.memory import gigabytes
from tests.commands import have_gpus, in_bfloat16, value
from workbench.checkpoints import BASE, write_checkpoint
from workbench.quantized import LAYOUTS, write_quantized


@pytest.mark.parametrize(("mode", "number"), [("on", 2), ("exact", 4)])
def test_the_context_is_a_power_of_two_that_fits(
    run, folder, monkeypatch, mode, number
):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    config = json.loads((folder / "config.json").read_text())
    width = config["num_hidden_layers"] * config["num_key_value_heads"]
    token = 2 * width * config["head_dim"] * number
    weights = (folder / "model.safetensors").stat().st_size

    def free(tokens):
        """Such that half of what is left of 90 % holds this many tokens."""
        return int((weights + 2 * tokens * token) / 0.9) + 8

    for tokens, context in ((600, 512), (512, 512), (511, 256), (256, 256)):
        monkeypatch.setattr(memory, "free_memory", lambda t=tokens: free(t))
        _, found, err = run("generate", folder)
        assert value(found, "--max-length") == str(context)
    assert "context 256 (its limit is 512;" in err
    # Too few tokens, and a memory that the weights alone exceed.
    for size in (free(255), 0):
        monkeypatch.setattr(memory, "free_memory", lambda size=size: size)
        status, _, err = run("generate", folder)
        assert status == 1
        assert "leaves no room for a context" in err
    # The user may know better.
    _, found, _ = run("generate", folder, "--max-length", "512")
    assert value(found, "--max-length") == "512"


@pytest.mark.parametrize(("keep", "doubled"), [("bfloat16", True), ("keep", False)])
def test_fp8_that_a_gpu_does_not_keep_counts_twice(
    run, tmp_path, monkeypatch, keep, doubled
):
    folder = write_checkpoint(tmp_path / "static", BASE)
    write_quantized(folder, LAYOUTS["static"])
    file = folder / "model.safetensors"
    have_gpus(monkeypatch, 1)
    monkeypatch.setattr("max_mistral.gpu.gpu_architecture", lambda: "sm_90a")
    monkeypatch.setenv("MAX_MISTRAL_FP8", keep)
    _, _, err = run("serve", folder)
    sizes = [gigabytes(file.stat().st_size), gigabytes(in_bfloat16(file))]
    assert sizes[0] != sizes[1]
    assert f"{sizes[doubled]} of weights" in err
    # Where they do not fit, what halves them is named.
    monkeypatch.setattr(memory, "_free_on", lambda devices: 0)
    status, _, err = run("serve", folder)
    assert status == 1
    assert ("MAX_MISTRAL_FP8=keep, which halves the weights" in err) == doubled


def test_the_format_of_the_cache_counts(run, folder, monkeypatch):
    weights = (folder / "model.safetensors").stat().st_size
    config = picks.read_config(folder)
    token = memory._token_bytes(config, picks.read_devices("cpu"), "bfloat16")
    free = int((weights + 2 * 256 * token) / 0.9) + 8
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    _, found, _ = run("generate", folder, "--kv-cache-format", "bfloat16")
    assert value(found, "--max-length") == "256"
    # Of twice the size half as many would fit, which is too few.
    status, _, err = run("generate", folder, "--kv-cache-format", "float32")
    assert status == 1
    assert "leaves no room for a context" in err


@pytest.mark.parametrize(("encoding", "number"), [("bfloat16", 2), ("float32", 4)])
def test_on_a_gpu_the_cache_is_as_the_encoding(
    run, folder, monkeypatch, encoding, number
):
    have_gpus(monkeypatch, 1)
    config = picks.read_config(folder)
    width = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    weights = in_bfloat16(folder / "model.safetensors") * number // 2
    for tokens, context in ((512, "512"), (511, "256")):
        free = int((weights + 2 * tokens * 2 * width * number) / 0.9) + 8
        monkeypatch.setattr(memory, "_free_on", lambda devices, free=free: free)
        _, found, _ = run("serve", folder, "--quantization-encoding", encoding)
        assert value(found, "--max-length") == context


def test_8_bits_are_int8_with_a_scale_on_a_cpu(folder):
    config = picks.read_config(folder)
    devices = picks.read_devices("cpu")
    sizes = {
        each: memory._token_bytes(config, devices, each)
        for each in ("bfloat16", "float8_e4m3fn")
    }
    width = config.head_dim
    assert sizes["float8_e4m3fn"] * 2 * width == sizes["bfloat16"] * (width + 4)


def test_without_the_kernels_weights_are_float32(folder, monkeypatch):
    checkpoint = read_checkpoint(folder)
    config = picks.read_config(folder)
    devices = picks.read_devices("cpu")
    packed = memory.fit_context(checkpoint, config, devices, "float32").weights
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    wide = memory.fit_context(checkpoint, config, devices, "float32").weights
    # The file is bfloat16 and has a header.
    assert wide < 2 * packed < wide + 20_000


def test_sizes_as_people_say_them():
    assert gigabytes(14_483_498_224) == "14.5 GB"
    assert gigabytes(98_400_000) == "98.4 MB"
