"""Every checkpoint of the family, from its config.json to the graph's numbers."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from max_mistral import MistralConfig
from max_mistral.formats import FP8
from max_mistral.hf_config import text_config
from max_mistral.hf_quantization import read_quantization
from max_mistral.hf_rope import RopeScaling
from max_mistral.prepare.native import read_config
from workbench.runner import make_pipeline_config

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs" / "mistralai"


def yarn(factor, original, attention_factor=1.0, beta_fast=32.0):
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=beta_fast,
        beta_slow=1.0,
    )


def row(
    hidden, ffn, layers, heads, vocab, limit, theta, *, window=None, tied=False, **rest
):
    """What a row's MistralConfig must say; head_dim is 128 in all of them."""
    windows = window if isinstance(window, list) else [window] * layers
    return {
        "hidden_size": hidden,
        "feed_forward_length": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": vocab,
        "max_seq_len": limit,
        "rope_theta": theta,
        "rms_norm_eps": 1e-5,
        "attention_multiplier": 128**-0.5,
        "tie_word_embeddings": tied,
        "sliding_windows": windows,
        "rope_scaling": None,
        "query_scaling": None,
    } | rest


MINISTRAL3 = {"rope_scaling": yarn(16.0, 16384), "query_scaling": (0.1, 16384)}
# 0.1 ln 64 + 1: mscale_all_dim is 0, so the factor's own default counts.
LN64 = 1.4158883083359672
MEDIUM = {"rope_scaling": yarn(64.0, 4096, LN64)}
SMALL = (5120, 32768, 40, 32, 131072)

FAMILY = {
    "Mistral-7B-v0.1": row(4096, 14336, 32, 32, 32000, 32768, 1e4, window=4096),
    "Mistral-7B-Instruct-v0.2": row(4096, 14336, 32, 32, 32000, 32768, 1e6),
    "Mistral-7B-Instruct-v0.3": row(4096, 14336, 32, 32, 32768, 32768, 1e6),
    "Mathstral-7B-v0.1": row(4096, 14336, 32, 32, 32768, 32768, 1e6),
    "Codestral-22B-v0.1": row(6144, 16384, 56, 48, 32768, 32768, 1e6),
    "Mistral-Small-Instruct-2409": row(6144, 16384, 56, 48, 32768, 32768, 1e6),
    "Mistral-Large-Instruct-2407": row(12288, 28672, 88, 96, 32768, 131072, 1e6),
    "Mistral-Nemo-Instruct-2407": row(5120, 14336, 40, 32, 131072, 131072, 1e6),
    "Mistral-Small-24B-Instruct-2501": row(*SMALL, 32768, 1e8),
    "Devstral-Small-2505": row(*SMALL, 131072, 1e9),
    "Devstral-Small-2507": row(*SMALL, 131072, 1e9),
    "Magistral-Small-2506": row(*SMALL, 40960, 1e9),
    "Ministral-8B-Instruct-2410": row(
        4096, 12288, 36, 32, 131072, 32768, 1e8, window=[None, *[32768] * 3] * 9
    ),
    # Tied by transformers' default; the head that the checkpoint has then counts
    # (test_checkpoints.py, "wrongly tied").
    "Mistral-Small-3.1-24B-Instruct-2503": row(*SMALL, 131072, 1e9, tied=True),
    "Magistral-Small-2509": row(*SMALL, 131072, 1e9, tied=True),
    "Ministral-3-3B-Base-2512": row(
        3072, 9216, 26, 32, 131072, 262144, 1e6, tied=True, **MINISTRAL3
    ),
    "Ministral-3-8B-Base-2512": row(
        4096, 14336, 34, 32, 131072, 262144, 1e6, **MINISTRAL3
    ),
    "Ministral-3-8B-Instruct-2512": row(
        4096, 14336, 34, 32, 131072, 262144, 1e6, **MINISTRAL3
    ),
    "Ministral-3-8B-Reasoning-2512": row(
        4096, 14336, 34, 32, 131072, 262144, 1e6, **MINISTRAL3
    ),
    "Ministral-3-14B-Base-2512": row(
        5120, 16384, 40, 32, 131072, 262144, 1e9, **MINISTRAL3
    ),
    "Devstral-2-123B-Instruct-2512": row(
        *(12288, 28672, 88, 96, 131072, 262144, 1e6),
        rope_scaling=yarn(64.0, 4096, LN64, beta_fast=4.0),
    ),
    "Devstral-Small-2-24B-Instruct-2512": row(
        *(*SMALL, 393216, 1e8),
        rope_scaling=yarn(48.0, 8192),
        query_scaling=(0.1, 8192),
    ),
    "Mistral-Medium-3.5-128B": row(12288, 28672, 88, 96, 131072, 262144, 1e6, **MEDIUM),
}
# Where params.json and config.json of a checkpoint say different things.
NATIVE = {
    # The whole context, where config.json stops at the window.
    "Ministral-8B-Instruct-2410": {"max_seq_len": 131072},
    # It does not say, so what prepare takes without --max-position-embeddings.
    "Devstral-Small-2507": {"max_seq_len": 32768},
}
QUANTIZED = {
    "Ministral-3-8B-Instruct-2512",
    "Devstral-2-123B-Instruct-2512",
    "Devstral-Small-2-24B-Instruct-2512",
    "Mistral-Medium-3.5-128B",
}


def initialize(pipeline_config, huggingface_config):
    limit = text_config(huggingface_config).max_position_embeddings
    return MistralConfig.initialize_from_config(
        pipeline_config, huggingface_config, max_seq_len=limit
    )


def check(config, expected):
    for name, value in expected.items():
        found = getattr(config, name)
        exact = not isinstance(value, float)
        assert found == (value if exact else pytest.approx(value)), name


@pytest.fixture(scope="module")
def pipeline_config(checkpoint):
    return make_pipeline_config(checkpoint)


def test_every_fixture_has_its_row():
    assert {path.name for path in CONFIGS.iterdir()} == FAMILY.keys()


def published(file):
    return sorted(path.parent.name for path in CONFIGS.glob(f"*/{file}"))


@pytest.mark.parametrize("name", published("config.json"))
def test_config_json(pipeline_config, name):
    config = AutoConfig.from_pretrained(CONFIGS / name)
    if name in QUANTIZED:
        assert read_quantization(config, None) == FP8("tensor", static=True)
        # What a CPU lacks is not looked at here.
        del config.quantization_config
    check(initialize(pipeline_config, config), FAMILY[name])


@pytest.mark.parametrize("name", published("params.json"))
def test_params_json(pipeline_config, name):
    config = AutoConfig.for_model(**read_config(CONFIGS / name / "params.json"))
    check(initialize(pipeline_config, config), FAMILY[name] | NATIVE.get(name, {}))
