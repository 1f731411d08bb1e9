"""A server with echo, chunked prefill and prefix caching against the reference.

The tiny seeded model answers token for token, probability for probability as
Hugging Face transformers does, however MAX schedules it.
"""

import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import serve
from tests.harness import tolerance
from tests.reference import CASES, Reference
from workbench.checkpoints import CONFIGS

# Prompts longer than this many tokens are prefilled in chunks.
CHUNK = 64
STEPS = 18  # the golden of one prompt emits the end-of-sequence token after 19


@pytest.fixture(scope="module")
def complete(checkpoint):
    with serve(
        *("--custom-architectures", "max_mistral"),
        *("--model", checkpoint),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--max-length", "256", "--max-batch-size", "4"),
        *("--enable-echo", "--enable-chunked-prefill", "--enable-prefix-caching"),
        *("--max-batch-input-tokens", CHUNK),
    ) as url:
        client = OpenAI(base_url=url, api_key="unused", max_retries=0)
        model = client.models.list().data[0].id

        def complete(prompt, **kwargs):
            defaults = {"max_tokens": STEPS, "temperature": 0, "logprobs": 1}
            return client.completions.create(
                model=model, prompt=prompt, **defaults | kwargs
            )

        yield complete


def log_probabilities(logits, tokens):
    """Of ``tokens[1:]`` under ``logits``, whose row i predicts token i + 1."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return rows[np.arange(len(tokens) - 1), tokens[1:]]


def assert_close(got, want, logits):
    # A log-probability is a difference of two logits' magnitudes.
    atol = 2 * tolerance(CONFIGS["gqa"], logits)
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def reference():
    return Reference.load("gqa")


@pytest.mark.parametrize("row", range(3))
def test_generation_agrees_with_the_reference(complete, reference, row):
    prompt, tokens = reference.prompts[row], reference.tokens[row]
    got = complete(prompt).choices[0].logprobs.token_logprobs
    want = log_probabilities(reference.logits[row][:-1], tokens)
    want = want[len(prompt) - 1 :][:STEPS]
    assert_close(got, want, reference.logits[row])


@pytest.mark.parametrize("row", [1, 2])
def test_echo_rescores_what_was_generated(complete, reference, row):
    """The prompt's and the output's tokens, scored in one pass."""
    tokens = reference.tokens[row][: -(CASES["gqa"].steps - STEPS)]
    echoed = complete(tokens, echo=True, max_tokens=1).choices[0].logprobs
    want = log_probabilities(reference.logits[row], tokens)
    # MAX gives the first token a probability too, of which there is none.
    assert_close(echoed.token_logprobs[-len(tokens) : -1], want, reference.logits[row])


def test_chunks_and_cached_prefixes_change_nothing(complete):
    """Prefilled in chunks, again from the cache, and rescored with echo."""
    prompt = [int(t) for t in np.random.default_rng(3).integers(3, 320, 150)]
    first, second = complete(prompt), complete(prompt)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 128
    np.testing.assert_allclose(
        first.choices[0].logprobs.token_logprobs,
        second.choices[0].logprobs.token_logprobs,
        atol=1e-4,
    )
    assert first.choices[0].text == second.choices[0].text


def test_an_empty_prompt_is_refused(complete):
    with pytest.raises(BadRequestError):
        complete("")
