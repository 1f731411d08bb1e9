"""Rotary frequencies and their parameters, against Hugging Face's."""

import math

import numpy as np
import pytest
from max.driver import CPU
from max.engine import InferenceSession
from max.graph import Graph
from transformers import AutoConfig

from max_mistral import MistralConfig, hf_config, hf_rope
from max_mistral.errors import UserError
from max_mistral.hf_rope import yarn_attention_factor
from max_mistral.layers.rope import ScaledRotaryEmbedding
from max_mistral.rope_frequencies import inverse_frequencies
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PARAMETERS = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn without mscale": YARN | {"mscale": None, "mscale_all_dim": None},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn with a factor": YARN | {"attention_factor": 0.7},
}


def config(rope_parameters, **changes):
    plain = {k: v for k, v in BASE.items() if k != "rope_theta"}
    plain |= {"head_dim": 128, "rope_parameters": rope_parameters}
    return AutoConfig.for_model(**plain | changes)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_frequencies_and_factor_equal_hugging_faces(name):
    pytest.importorskip("torch", reason="transformers computes them with torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    hf = config(PARAMETERS[name])
    rope_type = PARAMETERS[name]["rope_type"]
    if rope_type == "default":
        want, factor = 1.0 / 1e6 ** (np.arange(0, 128, 2) / 128), 1.0
    else:
        want, factor = ROPE_INIT_FUNCTIONS[rope_type](hf, "cpu")
        want = want.numpy()
    scaling = hf_rope.rope_scaling(hf)
    got = inverse_frequencies(128, hf_rope.rope_theta(hf), scaling)
    # Both round to float32; transformers also computes in it.
    np.testing.assert_allclose(got, want, rtol=8 * np.finfo(np.float32).eps)
    assert (scaling.attention_factor if scaling else 1.0) == pytest.approx(factor)


def test_yarn_keeps_and_stretches_at_the_published_bounds():
    """Dimensions 20 and 37 at head_dim 128, for Ministral 3's parameters."""
    scaling = hf_rope.rope_scaling(config(YARN))
    ratio = inverse_frequencies(128, 1e6, None) / inverse_frequencies(128, 1e6, scaling)
    assert np.allclose(ratio[:21], 1)
    assert np.all(np.diff(ratio[20:38]) > 0)
    assert np.allclose(ratio[37:], 16)


def test_yarns_attention_factor():
    assert yarn_attention_factor(16.0, 1.0, 1.0) == 1.0
    assert yarn_attention_factor(16.0, None, None) == 0.1 * math.log(16) + 1
    assert yarn_attention_factor(1.0, None, None) == 1.0
    assert yarn_attention_factor(16.0, 2.0, 1.0) == pytest.approx(
        (0.2 * math.log(16) + 1) / (0.1 * math.log(16) + 1)
    )


def test_the_divisors_of_a_gguf_file_are_llama_3s():
    """As llama.cpp's converter writes them for ``LLAMA3``'s parameters."""
    scaling = hf_rope.rope_scaling(config(LLAMA3))
    divisors = []
    for frequency in 1 / 5e5 ** (np.arange(0, 128, 2) / 128):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / 8 + smooth))
    assert len({*divisors}) > 5  # not 1 and 8 alone
    stored = tuple(np.float32(divisors).tolist())
    explicit = hf_rope.RopeScaling(rope_type="divisors", divisors=stored)
    want = inverse_frequencies(128, 5e5, scaling)
    got = inverse_frequencies(128, 5e5, explicit)
    np.testing.assert_allclose(got, want, rtol=4 * np.finfo(np.float32).eps)
    # And so in MAX's table of cosines and sines.
    plain, stated, read = rope_tables([None, scaling, explicit])
    angles = np.outer(np.arange(128, dtype=np.float32), want)
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(stated, turned, atol=1e-5)
    # A position of 127 turns by 127 times as much as the frequencies differ.
    np.testing.assert_allclose(read, stated, atol=1e-4)
    assert np.abs(plain - stated).max() > 0.1


def rope_tables(scalings):
    """MAX's tables for 64 tokens, ``[128, head_dim / 2, 2]``, computed by a graph."""
    with Graph("rope", input_types=[]) as graph:
        graph.output(
            *(
                ScaledRotaryEmbedding(
                    scaling, theta=5e5, head_dim=128, max_seq_len=64
                ).freqs_cis_base()
                for scaling in scalings
            )
        )
    tables = InferenceSession(devices=[CPU()]).load(graph).execute()
    return [table.to_numpy() for table in tables]


def test_a_type_that_is_not_implemented_raises_by_name():
    with pytest.raises(UserError, match="rope_type = 'dynamic'"):
        hf_rope.rope_scaling(config({"rope_type": "dynamic", "factor": 2.0}))


def test_a_missing_parameter_raises_by_name():
    incomplete = {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}
    hf = config(PARAMETERS["default"])
    hf.rope_parameters = incomplete
    with pytest.raises(UserError, match="lacks low_freq_factor"):
        hf_rope.rope_scaling(hf)


def test_parameters_by_layer_type():
    hf = config(PARAMETERS["default"])
    hf.rope_parameters = {"sliding_attention": YARN, "full_attention": dict(YARN)}
    assert hf_rope.rope_scaling(hf).factor == 16.0
    hf.rope_parameters["full_attention"]["factor"] = 8.0
    with pytest.raises(UserError, match="same parameters for every layer type"):
        hf_rope.rope_scaling(hf)


def test_queries_are_scaled_in_ministral3_only():
    scaled = YARN | {"llama_4_scaling_beta": 0.1}
    assert hf_rope.query_scaling(config(scaled, model_type="ministral3")) == (
        0.1,
        16384,
    )
    assert hf_rope.query_scaling(config(scaled)) is None
    assert hf_rope.query_scaling(config(YARN, model_type="ministral3")) is None


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [None] * 3),
        ({"sliding_window": 4096}, [4096] * 3),
        ({"sliding_window": "missing"}, [4096] * 3),
        # A Mistral has no layer_types; transformers ignores them.
        (
            {"sliding_window": 128, "layer_types": ["full_attention"] * 3},
            [128] * 3,
        ),
        (
            {
                "model_type": "ministral",
                "sliding_window": 128,
                "layer_types": ["full_attention", "sliding_attention"]
                + ["full_attention"],
            },
            [None, 128, None],
        ),
        ({"model_type": "ministral", "sliding_window": 128}, [128] * 3),
        ({"model_type": "ministral", "sliding_window": None}, [None] * 3),
    ],
)
def test_windows_by_layer(changes, windows):
    values = {k: v for k, v in (BASE | changes).items() if v != "missing"}
    assert hf_config.sliding_windows(AutoConfig.for_model(**values)) == windows


def test_an_unknown_layer_type_is_refused():
    hf = AutoConfig.for_model(**BASE | {"model_type": "ministral"})
    hf.layer_types = ["sliding_attention", "full_attention", "linear_attention"]
    with pytest.raises(UserError, match="linear_attention"):
        hf_config.sliding_windows(hf)


def test_ignored_layer_types_are_warned_of_once(tmp_path, monkeypatch):
    values = BASE | {
        "sliding_window": 128,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    }
    pipeline_config = make_pipeline_config(write_checkpoint(tmp_path, BASE))
    warnings = []
    monkeypatch.setattr(
        hf_config.logger, "warning", lambda *args: warnings.append(args)
    )
    MistralConfig.initialize_from_config(
        pipeline_config, AutoConfig.for_model(**values)
    )
    assert [args[0].partition(",")[0] for args in warnings] == [
        "config.json has layer_types"
    ]


def test_a_mix_of_flat_and_nested_parameters_is_refused():
    hf = config(PARAMETERS["default"])
    hf.rope_parameters = YARN | {"full_attention": dict(YARN)}
    with pytest.raises(UserError, match="same parameters for every layer type"):
        hf_rope.rope_scaling(hf)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (YARN | {"factor": float("nan")}, "factor = nan"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max"),
        (YARN | {"original_max_position_embeddings": 16.5}, "original_max"),
        (YARN | {"beta_fast": -1.0}, "beta_fast"),
        (YARN | {"mscale_all_dim": -10.0}, "mscale_all_dim"),
        (YARN | {"attention_factor": float("inf")}, "attention_factor"),
        (YARN | {"truncate": "no"}, "truncate"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "more than low_freq_factor"),
    ],
)
def test_parameters_out_of_range_are_refused(rope, message):
    hf = config(PARAMETERS["default"])
    hf.rope_parameters = rope
    with pytest.raises(UserError, match=message):
        hf_rope.rope_scaling(hf)


def test_scaled_queries_need_their_context():
    hf = config(PARAMETERS["default"], model_type="ministral3")
    hf.rope_parameters = {"rope_type": "default", "llama_4_scaling_beta": 0.1}
    with pytest.raises(UserError, match="lacks original_max_position_embeddings"):
        hf_rope.query_scaling(hf)
