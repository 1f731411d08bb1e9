"""What is read from a Hugging Face config, and what is refused."""

import json

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
