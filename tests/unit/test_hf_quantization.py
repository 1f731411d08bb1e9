"""What quantization_config asks for, and what is refused of it."""

import pytest
from transformers import AutoConfig

from max_mistral import hf_quantization
from max_mistral.errors import UserError
from max_mistral.formats import FP8, GPTQ, NVFP4
from max_mistral.hf_quantization import read_quantization
from workbench.quantized import CONFIG, LAYOUTS, write_quantized

# ModelOpt's own file within config.json.
NESTED = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16},
}


def read(quantization_config):
    config = AutoConfig.for_model(**CONFIG)
    config.quantization_config = quantization_config
    return read_quantization(config, None)


def test_what_the_configs_say():
    configs = {
        n: layout.config for n, layout in LAYOUTS.items() if not layout.standalone
    }
    found = {name: read(config) for name, config in configs.items()}
    assert found["static"] == found["native"] == FP8("tensor", static=True)
    assert found["autofp8"] == found["compressed_static"] == found["static"]
    assert found["autofp8_dynamic"] == FP8("tensor", static=False)
    assert found["channel"] == FP8("channel", static=False)
    assert found["block"] == found["compressed_block"] == FP8("block", static=False)
    text = edited("compressed_block", "weights", block_structure="128x128")
    assert read(text) == found["block"]
    assert found["nvfp4"] == NVFP4(compressed=True)
    assert found["modelopt_nvfp4"] == NVFP4(compressed=False)
    assert read(NESTED) == found["modelopt_nvfp4"]
    assert read(NESTED | {"quant_method": "modelopt"}) == found["modelopt_nvfp4"]
    assert found["gptq_desc_act"] == GPTQ(desc_act=True)
    assert read(None) is None


def test_modelopts_own_file(tmp_path):
    write_quantized(tmp_path, LAYOUTS["modelopt_fp8"])
    config = AutoConfig.from_pretrained(tmp_path)
    assert read_quantization(config, None) == FP8("tensor", static=True)
    (tmp_path / "hf_quant_config.json").unlink()
    assert read_quantization(config, None) is None


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not valid JSON"),
        ('{"producer"', "not valid JSON"),
        ("[]", "a JSON object"),
        ("{}", "lacks producer"),
        ('{"producer": "modelopt"}', "producer = 'modelopt'"),
        ('{"producer": {"name": 7}}', "name = 7"),
        ('{"producer": {"name": "modelopt"}}', "lacks quantization"),
        ('{"producer": {"name": "modelopt"}, "quantization": {}}', "lacks quant_algo"),
    ],
)
def test_a_malformed_file_of_modelopt_does_not_count_as_absent(
    tmp_path, content, named
):
    write_quantized(tmp_path, LAYOUTS["modelopt_fp8"])
    (tmp_path / "hf_quant_config.json").write_text(content)
    with pytest.raises(UserError, match=named) as error:
        read_quantization(AutoConfig.from_pretrained(tmp_path), None)
    assert "hf_quant_config.json" in str(error.value)


def test_the_hub_is_asked_for_quantized_tensors_only(monkeypatch):
    asked = []
    monkeypatch.setattr(
        hf_quantization,
        "find_file",
        lambda path, name, revision: asked.append(path),
    )
    config = AutoConfig.for_model(**CONFIG)
    config._name_or_path = "some/model"
    for encoding in ("bfloat16", "gptq", "float8_e4m3fn", "float4_e2m1fnx2"):
        assert read_quantization(config, encoding) is None
    assert asked == ["some/model"] * 2


def edited(name, part, **values):
    config = LAYOUTS[name].config
    group = config["config_groups"]["group_0"]
    group = group | {part: group[part] | values}
    return config | {"config_groups": {"group_0": group}}


STATIC_CHANNEL = edited(
    "channel", "input_activations", strategy="tensor", dynamic=False
)
BLOCK_OF_64 = edited("compressed_block", "weights", block_structure=[64, 64])
INPUTS = ("input_activations",)
NVFP4A16 = LAYOUTS["nvfp4"].config | {
    "config_groups": {"group_0": {"weights": {}, "input_activations": None}}
}
# SpinQuant's, of which the weights' own are no matter.
ROTATED = {
    "config_groups": {
        "R4": {"apply": [{"location": "weight_input"}, {"location": "input"}]}
    }
}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "awq"}, "quant_method = 'awq'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo = 'W4A8'"),
        (LAYOUTS["block"].config | {"weight_block_size": [64, 64]}, r"\[64, 64\]"),
        (LAYOUTS["block"].config | {"activation_scheme": "static"}, "'static'"),
        ({"quant_method": "fp8", "activation_scheme": "weird"}, "scheme = 'weird'"),
        (edited("channel", "weights", num_bits=4, type="int"), r"weights .* \(4, 'int"),
        (edited("channel", "weights", strategy="group"), "of weights = 'group'"),
        (edited("channel", "input_activations", dynamic=False), "input_.* = 'token'"),
        (edited("channel", "input_activations", strategy="tensor"), "in.* = 'tensor'"),
        (STATIC_CHANNEL, "of weights = 'channel'; .* with static activations"),
        (BLOCK_OF_64, r"block_structure .* = \[64, 64\]; .* \[128, 128\]"),
        (edited("compressed_block", "weights", block_structure=None), "= None"),
        (edited("compressed_block", *INPUTS, group_size=64), r"\('group', 64\)"),
        (edited("compressed_block", *INPUTS, strategy="token"), r"\('token', 128\)"),
        (edited("compressed_block", *INPUTS, dynamic=False), "dynamic .* = False"),
        (edited("nvfp4", "weights", group_size=32), r"weights .* \('tensor_group', 32"),
        (edited("nvfp4", "input_activations", num_bits=None), r"input_.*\(None, 'fl"),
        (edited("nvfp4", "input_activations", num_bits=8), r"input_.*\(8, 'float'\)"),
        (edited("nvfp4", "input_activations", dynamic=True), "dynamic .* = True"),
        (NVFP4A16, "input_activations = None; .* not weights alone"),
        (LAYOUTS["nvfp4"].config | {"config_groups": None}, "config_groups = None"),
        (LAYOUTS["nvfp4"].config | {"config_groups": {"a": []}}, "config_groups = {"),
        (LAYOUTS["nvfp4"].config | {"transform_config": ROTATED}, "at = 'input'"),
        (LAYOUTS["modelopt_nvfp4"].config | {"group_size": 32}, "group_size = 32"),
        (LAYOUTS["gptq"].config | {"bits": 8}, "bits = 8"),
        (LAYOUTS["gptq"].config | {"group_size": 32}, "group_size = 32"),
        (LAYOUTS["gptq"].config | {"sym": False}, "sym = False"),
        (LAYOUTS["gptq"].config | {"checkpoint_format": "gptq_v2"}, "= 'gptq_v2'"),
    ],
)
def test_what_does_not_run_is_named(config, named):
    with pytest.raises(UserError, match=named):
        read(config)


@pytest.mark.parametrize(
    "found",
    [
        "fp8",
        [1],
        {"quant_method": ["fp8"]},
        {"producer": "modelopt"},
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "fp8", "weight_block_size": "128"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": []},
        {"quant_method": "compressed-tensors", "config_groups": {"a": 7}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 7}}},
        {"quant_method": "compressed-tensors", "transform_config": 7},
        {
            "quant_method": "compressed-tensors",
            "transform_config": {"config_groups": {"a": {"apply": [{}]}}},
        },
        LAYOUTS["gptq_desc_act"].config | {"desc_act": "yes"},
        LAYOUTS["gptq_desc_act"].config | {"sym": 1},
        {"quant_method": "modelopt", "quantization": "NVFP4"},
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused(found):
    with pytest.raises(UserError, match="quantization_config of the checkpoint has"):
        read(found)
