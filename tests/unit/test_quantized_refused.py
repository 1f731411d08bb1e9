"""Quantized checkpoints that do not run, and how each is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from max.driver import DeviceSpec

from max_mistral import MistralConfig
from max_mistral.errors import UserError
from max_mistral.formats.scaled import QuantizedLayers
from tests.harness import load_safetensors, virtual_gpus
from workbench.quantized import (
    FP8_LAYOUTS,
    GPTQ_LAYOUTS,
    LAYOUTS,
    NVFP4_LAYOUTS,
    pipeline,
    write_quantized,
)

GPU = DeviceSpec.accelerator(0)


def load(folder):
    return load_safetensors(pipeline(folder))


def test_half_an_mlp_is_refused(tmp_path):
    write_quantized(tmp_path, LAYOUTS["channel"], dense=lambda n: "up_proj" in n)
    with pytest.raises(UserError, match=r"layers\.0\.mlp some projections"):
        QuantizedLayers.of(load(tmp_path))


Q = "model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    "name", [n for n in FP8_LAYOUTS + NVFP4_LAYOUTS if n != "native"]
)
def test_a_missing_scale_is_named(tmp_path, name):
    scale = Q + LAYOUTS[name].weight_scale
    write_quantized(tmp_path, LAYOUTS[name], edit=lambda tensors: tensors.pop(scale))
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight_scale"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["weight", "whole_scale", "input_scale"])
@pytest.mark.parametrize("name", NVFP4_LAYOUTS)
def test_a_missing_part_in_nvfp4_is_named(tmp_path, name, part):
    missing = Q + getattr(LAYOUTS[name], part)
    write_quantized(tmp_path, LAYOUTS[name], edit=lambda tensors: tensors.pop(missing))
    with pytest.raises(UserError, match=f"{re.escape(missing)} is missing"):
        load(tmp_path)


@pytest.mark.parametrize("value", [0, np.inf, np.nan])
@pytest.mark.parametrize("name", NVFP4_LAYOUTS + ["static"])
def test_a_scale_that_is_no_number_is_named(tmp_path, name, value):
    scale = Q + LAYOUTS[name].input_scale
    write_quantized(tmp_path, LAYOUTS[name], edit=lambda t: t[scale].fill(value))
    with pytest.raises(UserError, match=f"{re.escape(scale)} .*scale {value:.1f}"):
        load(tmp_path)


def test_a_quantized_head_is_refused(tmp_path):
    def more(tensors):
        tensors["lm_head.weight_scale"] = np.ones(1, np.float32)

    write_quantized(tmp_path, LAYOUTS["channel"], edit=more)
    with pytest.raises(UserError, match=r"lm_head\.weight is quantized"):
        load(tmp_path)


def test_mistrals_own_names_have_one_scale_a_tensor(tmp_path):
    """Those of rows would not follow the rows of Q and K."""
    layout = replace(LAYOUTS["channel"], native=True)
    write_quantized(tmp_path, layout)
    with pytest.raises(UserError, match="Mistral's own names"):
        load(tmp_path)


def test_nvfp4_takes_no_other_dtypes(tmp_path):
    def widen(tensors):
        tensors[Q + "weight_scale"] = tensors[Q + "weight_scale"].astype(np.float32)

    write_quantized(tmp_path, LAYOUTS["nvfp4"], edit=widen)
    with pytest.raises(UserError, match=r"q_proj\.weight_scale .* is float32; "):
        load(tmp_path)


def test_scales_of_another_layout_are_named(tmp_path):
    write_quantized(tmp_path, LAYOUTS["channel"])
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = LAYOUTS["autofp8_dynamic"].config
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"weight_scale has shape \[512, 1\]"):
        load(tmp_path)


def test_a_bias_in_gptq_must_be_zero(tmp_path):
    write_quantized(tmp_path, LAYOUTS["gptq"], edit=lambda t: t[Q + "bias"].fill(1))
    with pytest.raises(UserError, match=r"q_proj\.bias is unknown"):
        load(tmp_path)


@pytest.mark.parametrize("word", [0x77777776, 0x07777777, 0x88888888])
@pytest.mark.parametrize("name", GPTQ_LAYOUTS)
def test_zero_points_in_gptq_are_eight(tmp_path, name, word):
    """The last word is all that of GPTQModel's gptq_v2."""

    def edit(tensors):
        tensors[Q + "qzeros"].view(np.uint32).flat[-1] = word

    write_quantized(tmp_path, LAYOUTS[name], edit=edit)
    with pytest.raises(UserError, match=rf"q_proj\.qzeros has {word:#010x}, but sym"):
        load(tmp_path)


def test_zero_points_in_gptq_are_whole_numbers(tmp_path):
    def edit(tensors):
        tensors[Q + "qzeros"] = tensors[Q + "qzeros"].astype(np.float32)

    write_quantized(tmp_path, LAYOUTS["gptq"], edit=edit)
    with pytest.raises(UserError, match=r"q_proj\.qzeros of .* is float32"):
        load(tmp_path)


def test_columns_in_gptq_are_in_order_without_desc_act(tmp_path):
    def edit(tensors):
        groups = tensors[Q + "g_idx"]
        groups[[0, -1]] = groups[[-1, 0]]

    write_quantized(tmp_path, LAYOUTS["gptq"], edit=edit)
    with pytest.raises(UserError, match=r"q_proj\.g_idx has .* desc_act .* is false"):
        load(tmp_path)


@pytest.mark.parametrize("group", [-1, 1, 2, 2**31 - 1])
def test_groups_in_gptq_are_of_128_columns(tmp_path, group):
    def edit(tensors):
        groups = tensors[Q + "g_idx"]
        groups[np.flatnonzero(groups == 0)[0]] = group

    write_quantized(tmp_path, LAYOUTS["gptq_desc_act"], edit=edit)
    with pytest.raises(UserError, match=r"q_proj\.g_idx of .* has groups of other"):
        load(tmp_path)


def test_fp8_without_a_quantization_config_is_refused(tmp_path):
    def unscaled(tensors):
        for name in [n for n in tensors if n.endswith("_scale")]:
            del tensors[name]

    write_quantized(tmp_path, LAYOUTS["autofp8_dynamic"], edit=unscaled)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"is float8_e4m3fn, but neither config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["nvfp4", "gptq"])
def test_a_cpu_refuses_and_says_what_works(tmp_path, name):
    write_quantized(tmp_path, LAYOUTS[name])
    flags = {"device_specs": [DeviceSpec.cpu()], "quantization_encoding": "float32"}
    with pytest.raises(UserError, match=r"on GPUs only.*bfloat16 checkpoint or a GGUF"):
        MistralConfig.initialize(pipeline(tmp_path, **flags))


def test_gptq_runs_on_one_gpu(tmp_path):
    write_quantized(tmp_path, LAYOUTS["gptq"])
    two = [GPU, DeviceSpec.accelerator(1)]
    with pytest.raises(UserError, match="on one GPU, not on 2"):
        MistralConfig.initialize(pipeline(tmp_path, device_specs=two))


@pytest.mark.parametrize(
    ("name", "encoding"), [("static", "float8_e4m3fn"), ("nvfp4", "float4_e2m1fnx2")]
)
def test_activations_are_bfloat16(tmp_path, name, encoding):
    write_quantized(tmp_path, LAYOUTS[name])
    flags = {"quantization_encoding": "float32"}
    with pytest.raises(UserError, match=f"--quantization-encoding {encoding}"):
        MistralConfig.initialize(pipeline(tmp_path, **flags))


@pytest.mark.parametrize("gpu", ["sm_90a", "sm_120a", "gfx950"])
def test_nvfp4_needs_a_blackwell(tmp_path, gpu):
    write_quantized(tmp_path, LAYOUTS["nvfp4"])
    with virtual_gpus(gpu), pytest.raises(UserError, match=f"this GPU is {gpu}"):
        MistralConfig.initialize(pipeline(tmp_path))
