"""Logits against Hugging Face transformers: prefill of a ragged batch, then decode.

The reference comes from the committed goldens, and live from transformers
wherever torch is installed.
"""

import numpy as np
import pytest
from max.nn.transformer import ReturnLogits

from tests.checkpoints import CONFIGS
from tests.harness import split_logits, tolerance
from tests.reference import (
    DECODE_STEPS,
    GOLDENS,
    PROMPT_LENGTHS,
    Reference,
    compute,
)

# Three graphs: every config, every mode.
CASES = [
    ("gqa", ReturnLogits.ALL),
    ("mha_tied", ReturnLogits.LAST_TOKEN),
    ("gqa", ReturnLogits.VARIABLE),
]


@pytest.fixture(scope="module", params=["golden", "live"])
def reference(request, checkpoints):
    """Returns the reference of a config, committed or computed now."""

    def get(name):
        if request.param == "golden":
            return Reference.load(GOLDENS / f"{name}.npz")
        pytest.importorskip("torch", reason="the live reference needs torch")
        return compute(checkpoints[name])

    return get


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_prefill_and_decode(runner, reference, name, mode):
    expected = reference(name)
    tokens, logits = runner(name, mode).generate(expected.prompts, DECODE_STEPS)
    assert tokens == expected.tokens
    for prompt, got, want in zip(
        expected.prompts, logits, expected.logits, strict=True
    ):
        first = 0 if mode == ReturnLogits.ALL else len(prompt) - 1
        want = want[first:-1]
        assert got.shape == want.shape
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance(CONFIGS[name], want)
        )


def test_variable_logits_are_the_trailing_ones(runner, reference):
    expected = reference("gqa")
    model = runner("gqa", ReturnLogits.VARIABLE)
    # The first prompt has one token only, so it cannot give three logits.
    prompts = expected.prompts[1:]
    contexts = model.claim(prompts)
    inputs = model.model.prepare_initial_token_inputs(
        [contexts], model.kv_inputs(contexts), return_n_logits=3
    )
    rows = split_logits(model.model.execute(inputs))
    model.release(contexts)
    for prompt, got, want in zip(prompts, rows, expected.logits[1:], strict=True):
        want = want[len(prompt) - 3 : len(prompt)]
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance(CONFIGS["gqa"], want)
        )


def test_the_tolerance_would_notice_a_mistake(reference):
    """Swapping two prompt tokens, or a rotary base off by 1 %, moves logits more."""
    pytest.importorskip("torch", reason="the perturbed reference needs torch")
    expected = reference("gqa").logits[PROMPT_LENGTHS.index(33)]
    # A shift of one position is what an off-by-one in RoPE or the mask does.
    assert np.abs(expected[1:] - expected[:-1]).max() > 1000 * tolerance(
        CONFIGS["gqa"], expected
    )
