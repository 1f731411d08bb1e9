"""What the max-mistral command picks where the user says nothing."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from max.driver import DeviceSpec

from max_mistral.command import memory
from max_mistral.command.memory import gigabytes
from max_mistral.encoding import resolved_encoding
from tests.commands import have_gpus, in_bfloat16, value
from tests.harness import virtual_gpus
from workbench.checkpoints import BASE, write_checkpoint, write_headless, write_native
from workbench.quantized import LAYOUTS, pipeline, write_quantized
from workbench.runner import make_pipeline_config


def test_a_gguf_file_is_prepared_once(run, gguf, tmp_path):
    status, first, err = run("generate", gguf, "--prompt", "it's")
    assert status == 0
    assert Path(first[0]).name == "max"
    prepared = Path(value(first, "--model"))
    assert prepared.parent == tmp_path / "cache" / "max_mistral" / "models"
    assert json.loads((prepared / "config.json").read_text())["hidden_size"] == 8
    assert value(first, "--weight-path") == str(gguf)
    assert value(first, "--devices") == "cpu"
    assert value(first, "--max-length") == "64"
    assert value(first, "--custom-architectures") == "max_mistral"
    assert "--quantization-encoding" not in first
    assert "--served-model-name" not in first
    assert first[-2:] == ["--prompt", "it's"]
    preparing, summary, line = err.splitlines()
    assert preparing.startswith(f"Preparing {gguf}")
    assert "context 64 (its limit" in summary
    assert shlex.split(line) == first
    _, second, err = run("generate", gguf, "--prompt", "it's")
    assert second == first
    assert "Preparing" not in err


def test_replicas_have_a_part_of_the_memory_each(run, folder, monkeypatch):
    have_gpus(monkeypatch, 4)
    _, found, _ = run("serve", folder, "--devices", "gpu:0,1,2,3")
    assert value(found, "--max-length") == "512"
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(memory, "_free_on", lambda devices: 8 * weights)
    flags = ["--devices", "gpu:0,1,2,3", "--data-parallel-degree"]
    assert run("serve", folder, *flags, "1")[0] == 0
    # Each of eight times the weights has a quarter; of four replicas, two weights.
    for degree, more, status in (
        ("4", [], 0),
        ("4", ["--device-memory-utilization", "0.5"], 1),
        ("x", [], 0),
    ):
        assert bool(run("serve", folder, *flags, degree, *more)[0]) == bool(status)


def test_a_model_that_embeds_does_not_generate(run, folder, tmp_path):
    headless = write_headless(tmp_path / "headless", BASE)
    for model, more in ((headless, []), (folder, ["--task", "embeddings_generation"])):
        status, command, err = run("generate", model, "--prompt", "a", *more)
        assert status != 0
        assert not command
        assert "serve" in err
        assert "--task embeddings_generation" in err
        assert run("serve", model, *more)[0] == 0


def test_huggingfaces_format_is_taken_as_it_is(run, folder, tmp_path):
    _, found, _ = run("serve", folder)
    assert value(found, "--model") == str(folder)
    assert value(found, "--quantization-encoding") == "float32"
    assert value(found, "--max-length") == "512"
    assert value(found, "--served-model-name") == str(folder)
    assert "--weight-path" not in found
    assert not (tmp_path / "cache").exists()


def test_a_float16_checkpoint_has_its_files_named(run, tmp_path):
    folder = write_checkpoint(tmp_path / "half", BASE, dtype="float16", shards=2)
    _, found, _ = run("generate", folder)
    assert named(found) == [str(path) for path in sorted(folder.glob("*.safetensors"))]
    assert len(named(found)) == 2


def named(command):
    """The values of --weight-path."""
    return [command[i + 1] for i, flag in enumerate(command) if flag == "--weight-path"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "other", ["adapter_model.safetensors", "sub/model.safetensors", "a/b/x.safetensors"]
)
def test_files_are_named_where_max_would_load_others_too(
    run, tmp_path, monkeypatch, other, dtype
):
    folder = write_checkpoint(tmp_path / "m", BASE, dtype=dtype, shards=2)
    shards = sorted(folder.glob("*.safetensors"))
    (folder / other).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shards[0], folder / other)
    # As MAX has it; its own choice is why the command makes one.
    left = make_pipeline_config(folder).model.resolved_weight_paths()
    assert folder / other in left
    _, found, _ = run("serve", folder)
    assert named(found) == list(map(str, shards))
    model = make_pipeline_config(folder, weight_path=named(found)).model
    assert model.resolved_weight_paths() == shards
    # On a GPU MAX would not look into files that are named.
    have_gpus(monkeypatch, 1)
    _, found, _ = run("serve", folder)
    assert named(found) == list(map(str, shards))
    assert value(found, "--quantization-encoding") == "bfloat16"
    # The user's own files stay the only ones.
    _, found, _ = run("serve", folder, "--weight-path", shards[0])
    assert named(found) == [str(shards[0])]


def test_what_max_passes_over_is_not_named(run, tmp_path):
    folder = write_checkpoint(tmp_path / "m", BASE, shards=2)
    for other in ("checkpoint-500/model.safetensors", "consolidated.safetensors"):
        (folder / other).parent.mkdir(exist_ok=True)
        shutil.copy(next(folder.glob("model-*")), folder / other)
    left = make_pipeline_config(folder).model.resolved_weight_paths()
    assert sorted(left) == sorted(folder.glob("model-*"))
    assert named(run("serve", folder)[1]) == []


@pytest.mark.parametrize("name", ["static", "compressed_block", "nvfp4", "gptq"])
def test_files_that_are_named_have_their_encoding_on_a_gpu(
    run, tmp_path, monkeypatch, name
):
    folder = write_checkpoint(tmp_path / name, BASE)
    write_quantized(folder, LAYOUTS[name])
    (folder / "adapter_model.safetensors").touch()
    have_gpus(monkeypatch, 1)
    _, found, _ = run("serve", folder)
    assert named(found) == [str(folder / "model.safetensors")]
    assert value(found, "--quantization-encoding") == LAYOUTS[name].encoding
    if name != "gptq":
        # What MAX finds by itself, without the other file.
        (folder / "adapter_model.safetensors").unlink()
        with virtual_gpus("sm_100a"):
            model = pipeline(folder).model
            assert resolved_encoding(model) == LAYOUTS[name].encoding


def test_files_in_a_folder_whose_path_is_a_pattern_are_named(run, tmp_path):
    folder = write_checkpoint(tmp_path / "m[1]", BASE, dtype="bfloat16")
    _, found, _ = run("serve", folder)
    assert named(found) == [str(folder / "model.safetensors")]


@pytest.mark.parametrize("beside", ["consolidated.safetensors", "b-Q8_0.gguf", "x.bin"])
def test_what_max_passes_over_is_no_other_file(run, folder, beside):
    (folder / beside).touch()
    _, found, _ = run("serve", folder)
    assert not named(found)


def test_mistrals_format_is_prepared(run, tmp_path):
    source = write_native(tmp_path / "native", BASE, dtype="bfloat16")
    _, found, err = run("generate", source)
    prepared = Path(value(found, "--model"))
    assert (prepared / "model.safetensors").resolve().parent == source
    assert value(found, "--quantization-encoding") == "float32"
    assert "Preparing" in err
    _, again, err = run("generate", source)
    assert again == found
    assert "Preparing" not in err


def test_a_folder_with_one_gguf_file(run, gguf):
    (gguf.parent / "mmproj-model-f16.gguf").write_bytes(b"a vision tower")
    _, found, _ = run("generate", gguf.parent)
    assert value(found, "--weight-path") == str(gguf)


def test_a_gpu_is_taken_where_there_is_one(run, folder, gguf, monkeypatch):
    have_gpus(monkeypatch, 2)
    _, found, _ = run("serve", folder)
    assert value(found, "--devices") == "gpu:0"
    _, found, _ = run("serve", gguf)
    assert value(found, "--devices") == "cpu"
    _, found, _ = run("serve", folder, "--weight-path", gguf)
    assert value(found, "--devices") == "cpu"
    _, found, _ = run("serve", folder, "--devices", "cpu")
    assert value(found, "--devices") == "cpu"
    assert value(found, "--quantization-encoding") == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_that_are_not_quantized_are_bfloat16_on_a_gpu(
    run, tmp_path, monkeypatch, dtype
):
    folder = write_checkpoint(tmp_path / "m", BASE, dtype=dtype)
    have_gpus(monkeypatch, 1)
    _, found, err = run("serve", folder)
    assert value(found, "--quantization-encoding") == "bfloat16"
    assert "gpu:0, bfloat16, context" in err
    size = in_bfloat16(folder / "model.safetensors")
    assert f"{gigabytes(size)} of weights" in err
    flags = {"device_specs": [DeviceSpec.accelerator()], "weight_path": named(found)}
    with virtual_gpus("sm_100a"):
        flags["quantization_encoding"] = "bfloat16"
        made = make_pipeline_config(folder, **flags)
        assert resolved_encoding(made.model) == "bfloat16"
    # The user's choice wins.
    _, found, err = run("serve", folder, "--quantization-encoding", "float32")
    assert value(found, "--quantization-encoding") == "float32"
    assert f"gpu:0, float32, context 512 (its limit; {gigabytes(2 * size)}" in err


def test_a_file_named_after_float32_is_bfloat16_on_a_gpu(run, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "m", BASE)
    file = (folder / "model.safetensors").rename(folder / "m-f32.safetensors")
    have_gpus(monkeypatch, 1)
    _, found, err = run("serve", folder, "--weight-path", file)
    assert "gpu:0, bfloat16, context" in err
    assert "--quantization-encoding" not in found
    flags = {"device_specs": [DeviceSpec.accelerator()], "weight_path": named(found)}
    with virtual_gpus("sm_100a"):
        # What MAX takes by itself, and where it is told to.
        for asked, taken in ((None, "bfloat16"), ("bfloat16", "float32")):
            made = make_pipeline_config(folder, quantization_encoding=asked, **flags)
            assert resolved_encoding(made.model) == taken
    # MAX looks into files that are not named.
    _, found, _ = run("serve", folder)
    assert (named(found), value(found, "--quantization-encoding")) == ([], "bfloat16")


@pytest.mark.parametrize("devices", ["gpu", "gpu:0", "gpu:0,1", "gpu:all"])
def test_a_gguf_file_on_a_gpu_is_refused(run, folder, gguf, monkeypatch, devices):
    have_gpus(monkeypatch, 2)
    for model, more in ((gguf, []), (folder, ["--weight-path", gguf])):
        status, found, err = run("serve", model, "--devices", devices, *more)
        assert (status, found) == (2, [])
        assert f"--devices is '{devices}', but a GGUF file runs on the CPU alone" in err
        assert "Leave --devices out, or take the model's safetensors" in err


def test_a_models_memory_is_that_of_all_its_gpus(run, folder, monkeypatch):
    have_gpus(monkeypatch, 2)
    # Half of 90 % of a TiB holds 460 tokens of a GiB.
    monkeypatch.setattr(memory, "_token_bytes", lambda *_: 2**30)
    monkeypatch.setattr(memory, "_free_on", lambda devices: 2**40 * len(devices))
    contexts = [
        value(run("serve", folder, "--devices", devices)[1], "--max-length")
        for devices in ("gpu:0", "gpu:0,1", "gpu:all")
    ]
    assert contexts == ["256", "512", "512"]


def test_a_quantized_checkpoint_needs_a_gpu(run, tmp_path, monkeypatch):
    for name in ("static", "gptq"):
        folder = tmp_path / name
        write_checkpoint(folder, BASE)
        write_quantized(folder, LAYOUTS[name])
    status, _, err = run("serve", tmp_path / "gptq")
    assert status == 1
    assert "runs on GPUs only" in err
    # FP8 becomes bfloat16 on a CPU.
    _, found, err = run("serve", tmp_path / "static")
    assert value(found, "--quantization-encoding") == "float32"
    file = tmp_path / "static" / "model.safetensors"
    assert value(found, "--weight-path") == str(file)
    assert f"{gigabytes(in_bfloat16(file))} of weights" in err
    have_gpus(monkeypatch, 1)
    _, found, _ = run("serve", tmp_path / "static")
    assert "--quantization-encoding" not in found
    _, found, _ = run("serve", tmp_path / "gptq")
    assert value(found, "--quantization-encoding") == "gptq"
