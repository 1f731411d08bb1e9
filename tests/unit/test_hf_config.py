"""What is read from a Hugging Face config, and what is refused."""

import json
from types import SimpleNamespace

import pytest
from transformers import MistralConfig as HFMistralConfig

from max_mistral import hf_config, hf_rope
from max_mistral.errors import UserError
from workbench.checkpoints import BASE


def config(**changes):
    return HFMistralConfig(**BASE | changes)


def test_head_dim_is_the_explicit_one():
    assert hf_config.head_dim(config(head_dim=32)) == 32


def test_head_dim_null_is_hidden_over_heads():
    assert hf_config.head_dim(config(head_dim=None)) == 24


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 1e6}, 1e6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    ],
)
def test_rope_theta_wherever_transformers_put_it(changes, theta):
    plain = {k: v for k, v in BASE.items() if k != "rope_theta"}
    assert hf_rope.rope_theta(HFMistralConfig(**plain | changes)) == theta


def test_rope_theta_defaults_to_10000():
    plain = {k: v for k, v in BASE.items() if k != "rope_theta"}
    assert hf_rope.rope_theta(HFMistralConfig(**plain)) == 10000.0


def test_a_plain_mistral_is_supported():
    hf_config.check_supported(config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type = 'dynamic'",
        ),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    ],
)
def test_what_the_graph_cannot_honour_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        hf_config.check_supported(config(**changes))


def write(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_a_complete_config_file_passes(tmp_path):
    hf_config.check_required_keys(write(tmp_path, BASE), None)


@pytest.mark.parametrize("key", hf_config.REQUIRED_KEYS)
def test_a_missing_key_is_named(tmp_path, key):
    values = {k: v for k, v in BASE.items() if k != key}
    with pytest.raises(UserError, match=f"lacks {key}"):
        hf_config.check_required_keys(write(tmp_path, values), None)


@pytest.mark.parametrize("value", [7, [], "x"])
def test_a_text_config_that_is_no_object(tmp_path, value):
    folder = write(tmp_path, BASE | {"text_config": value})
    with pytest.raises(UserError, match="text_config"):
        hf_config.check_required_keys(folder, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 2**31),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "3"),
        ("vocab_size", 2**31),
        ("hidden_size", -96),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 1.0),
        ("head_dim", 33),
        ("head_dim", -2),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", 10**30),
        ("sliding_window", -1),
        ("sliding_window", [128]),
        ("layer_types", "full_attention"),
        ("layer_types", [1, 2, 3]),
        ("partial_rotary_factor", 0.5),
        ("rope_theta", float("nan")),
        ("rope_theta", -1.0),
        ("rope_theta", 1),
        ("rope_parameters", 7),
        ("rope_parameters", {"rope_type": ["default"]}),
        ("rope_parameters", {"rope_type": "linear", "factor": 0}),
        ("rope_parameters", {"rope_type": "linear", "factor": "4"}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"rope_type": "default", "long_factor": [1.0]}),
        ("rope_parameters", {"rope_type": "default", "stray": {"rope_theta": 1e6}}),
    ],
)
def test_a_value_of_another_kind_or_size_is_named(key, value):
    """transformers refuses some of these itself, in words of its own."""
    config = SimpleNamespace(**BASE | {key: value})
    named = "rope" if key.startswith("rope") else key
    with pytest.raises(UserError, match=named):
        hf_config.check_supported(config)
