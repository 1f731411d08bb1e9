"""Logits against Hugging Face transformers: prefill of a ragged batch, then decode.

The reference comes from the committed goldens, and live from transformers
wherever torch is installed.
"""

import copy
import functools

import numpy as np
import pytest
from max.nn.transformer import ReturnLogits

from tests.harness import tolerance
from tests.reference import CASES, Reference, compute, score
from workbench.checkpoints import CONFIGS, make_tensors, write_checkpoint
from workbench.runner import split_logits

# One graph each: every config, every mode.
GRAPHS = [
    ("gqa", ReturnLogits.ALL),
    ("mha_tied", ReturnLogits.LAST_TOKEN),
    ("gqa", ReturnLogits.VARIABLE),
    ("window", ReturnLogits.ALL),
    ("ministral", ReturnLogits.ALL),
    ("ministral3", ReturnLogits.ALL),
    ("head_dim_128", ReturnLogits.ALL),
]


@pytest.fixture(scope="module", params=["golden", "live"])
def reference(request, checkpoints):
    """Returns the reference of a config, committed or computed now."""

    def get(name):
        if request.param == "golden":
            return Reference.load(name)
        pytest.importorskip("torch", reason="the live reference needs torch")
        return compute(checkpoints[name], CASES[name])

    return get


@pytest.mark.parametrize(("name", "mode"), GRAPHS)
def test_prefill_and_decode(runner, reference, name, mode):
    expected, case = reference(name), CASES[name]
    tokens, logits = runner(name, mode).generate(expected.prompts, case.steps)
    assert tokens == expected.tokens
    for prompt, got, want in zip(
        expected.prompts, logits, expected.logits, strict=True
    ):
        # The token of each row, for those that the model and the reference have.
        first = 0 if mode == ReturnLogits.ALL else len(prompt) - 1
        last = len(prompt) + case.steps - 1
        rows = [r for r in range(0, last, case.stride) if r >= first]
        assert got.shape[0] == last - first
        want = want[[r // case.stride for r in rows]]
        np.testing.assert_allclose(
            got[[r - first for r in rows]],
            want,
            rtol=0,
            atol=tolerance(CONFIGS[name], want),
        )


def test_variable_logits_are_the_trailing_ones(runner, reference):
    expected = reference("gqa")
    model = runner("gqa", ReturnLogits.VARIABLE)
    # The first prompt has one token only, so it cannot give three logits.
    prompts = expected.prompts[1:]
    contexts = model.claim(prompts)
    inputs = model.inputs(contexts, return_n_logits=3)
    rows = split_logits(model.model.execute(inputs))
    model.release(contexts)
    for prompt, got, want in zip(prompts, rows, expected.logits[1:], strict=True):
        want = want[len(prompt) - 3 : len(prompt)]
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance(CONFIGS["gqa"], want)
        )


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("gqa", {"rope_theta": 10100.0}),
        ("window", {"sliding_window": 130}),
        ("window", {"sliding_window": 132}),
        ("window", {"sliding_window": None}),
        ("ministral", {"layer_types": ["sliding_attention"] * 4}),
        ("head_dim_128", {"layer_types": ["sliding_attention"] * 2}),
        ("head_dim_128", {"sliding_window": 129}),
        ("ministral3", {"rope_parameters.llama_4_scaling_beta": 0.0}),
        ("ministral3", {"rope_parameters.factor": 15.5}),
        ("ministral3", {"rope_parameters.mscale": None}),
        ("ministral3", {"rope_parameters.beta_slow": 1.5}),
    ],
    ids=str,
)
def test_the_tolerance_would_notice_a_mistake(tmp_path, name, mistake):
    """The reference itself, computed with a wrong config, is out of tolerance."""
    pytest.importorskip("torch", reason="the wrong reference needs torch")
    right, case = Reference.load(name), CASES[name]
    config = copy.deepcopy(CONFIGS[name])
    for key, value in mistake.items():
        *path, last = key.split(".")
        functools.reduce(dict.__getitem__, path, config)[last] = value
    folder = write_checkpoint(tmp_path, config, tensors=make_tensors(CONFIGS[name]))
    wrong = score(folder, right.tokens[-1])[:: case.stride]
    difference = np.abs(wrong - right.logits[-1]).max()
    assert difference > 3 * tolerance(CONFIGS[name], right.logits[-1])
