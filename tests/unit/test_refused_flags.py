"""Flags of MAX that would change what a model computes."""

import shutil

import gguf
import pytest
from max.driver import DeviceSpec

from max_mistral.errors import UserError
from max_mistral.model_config import MistralConfig
from tests.harness import virtual_gpus
from workbench.checkpoints import BASE, write_gguf
from workbench.runner import make_pipeline_config

CPU, GPU = DeviceSpec.cpu(), DeviceSpec.accelerator(0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"sliding_window": 16}, "--sliding-window is 16"),
        (
            {"enable_echo": True, "enable_penalties": True},
            "--enable-echo does not go together with penalties",
        ),
        ({"rope_type": "neox"}, "--rope-type is neox"),
        ({"thinking_temperature": 0.5}, "--thinking-temperature is 0.5"),
        ({"device_specs": [CPU, GPU]}, "--devices are cpu, gpu"),
        ({"device_specs": [CPU, CPU]}, "--devices are cpu, cpu"),
    ],
)
def test_it_is_named(checkpoint, flags, words):
    config = make_pipeline_config(checkpoint, **flags)
    with pytest.raises(UserError, match=words):
        MistralConfig.initialize(config)


def test_a_subfolder(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "m")
    shutil.copytree(checkpoint, tmp_path / "m" / "text")
    config = make_pipeline_config(tmp_path / "m", subfolder="text")
    with pytest.raises(UserError, match=r"--subfolder is text.* Give .*/m/text"):
        MistralConfig.initialize(config)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", None])
def test_a_gguf_file_on_a_gpu(checkpoint, tmp_path, encoding):
    path = tmp_path / "m.Q8_0.gguf"
    write_gguf(path, BASE, gguf.GGMLQuantizationType.Q8_0, {})
    flags = {"weight_path": [path], "quantization_encoding": encoding}
    with virtual_gpus("sm_90a"):
        config = make_pipeline_config(checkpoint, device_specs=[GPU], **flags)
        with pytest.raises(UserError, match=r"m\.Q8_0\.gguf is .* Set --devices cpu"):
            MistralConfig.initialize(config)
    MistralConfig.initialize(make_pipeline_config(checkpoint, weight_path=[path]))


@pytest.mark.parametrize(
    ("encoding", "device"),
    [
        ("q4_k", CPU),
        ("q6_k", CPU),
        ("gptq", GPU),
        ("float8_e4m3fn", GPU),
        ("float4_e2m1fnx2", GPU),
    ],
)
def test_a_quantized_encoding_of_weights_that_are_not(checkpoint, encoding, device):
    flags = {"quantization_encoding": encoding, "device_specs": [device]}
    flags["weight_path"] = [checkpoint / "model.safetensors"]
    with virtual_gpus("sm_90a"):
        config = make_pipeline_config(checkpoint, **flags)
        with pytest.raises(UserError, match=f"encoding is {encoding}, .*g bfloat16, o"):
            MistralConfig.initialize(config)


def test_an_encoding_that_max_reads_off_a_folders_name(checkpoint, tmp_path):
    folder = tmp_path / "m-fp8"
    shutil.copytree(checkpoint, folder)
    flags = {"device_specs": [GPU]}
    with virtual_gpus("sm_90a"):
        config = make_pipeline_config(folder, quantization_encoding=None, **flags)
        with pytest.raises(
            UserError, match=r"is float8_e4m3fn, .* name of a file or f"
        ):
            MistralConfig.initialize(config)
        flags["quantization_encoding"] = "bfloat16"
        MistralConfig.initialize(make_pipeline_config(folder, **flags))


def test_what_changes_nothing_is_not(checkpoint):
    config = make_pipeline_config(checkpoint, rope_type="normal")
    MistralConfig.initialize(config)
