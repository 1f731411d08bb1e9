"""Flags of MAX that would change what a model computes."""

import shutil

import pytest
from max.driver import DeviceSpec

from max_mistral.errors import UserError
from max_mistral.model_config import MistralConfig
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


def test_what_changes_nothing_is_not(checkpoint):
    config = make_pipeline_config(checkpoint, rope_type="normal")
    MistralConfig.initialize(config)
