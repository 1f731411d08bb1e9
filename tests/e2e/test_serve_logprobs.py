"""A server with echo, chunked prefill and prefix caching against the reference.

The tiny seeded model answers token for token, probability for probability as
Hugging Face transformers does, however MAX schedules it.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import serve
from tests.harness import tolerance
from tests.reference import CASES, Reference
from workbench.checkpoints import CONFIGS

# Prompts longer than this many tokens are prefilled in chunks: all but one.
CHUNK = 16
STEPS = 18  # the golden of one prompt emits the end-of-sequence token after 19


@pytest.fixture(scope="module")
def complete(checkpoint):
    with serve(
        *("--custom-architectures", "max_mistral"),
        *("--model", checkpoint),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--max-length", "256", "--max-batch-size", "4"),
        *("--enable-echo", "--enable-chunked-prefill", "--enable-prefix-caching"),
        # The reference rounds no keys and values.
        *("--max-batch-input-tokens", CHUNK, "--kv-cache-format", "float32"),
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
    first, *got, _ = echoed.token_logprobs
    assert first is echoed.top_logprobs[0] is None
    assert_close(got, want, reference.logits[row])


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


def test_echo_scores_the_whole_prompt_each_time(complete):
    """In 15 chunks, though another request left the prompt in the cache."""
    prompt = [int(t) for t in np.random.default_rng(4).integers(3, 320, 230)]
    complete(prompt, max_tokens=1)
    again = complete(prompt, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens == 128
    echoed = [
        complete(prompt, echo=True, max_tokens=3, logprobs=2).choices[0].logprobs
        for _ in range(2)
    ]
    assert len(echoed[0].token_logprobs) == len(prompt) + 3
    assert echoed[0].token_logprobs == echoed[1].token_logprobs
    assert echoed[0].top_logprobs == echoed[1].top_logprobs


def test_echo_scores_several_at_a_time(complete, reference):
    """Among requests that do not echo, each in chunks of its own."""
    tokens = reference.tokens[2][: -(CASES["gqa"].steps - STEPS)]
    other = [int(t) for t in np.random.default_rng(5).integers(3, 320, 100)]
    with ThreadPoolExecutor(6) as pool:
        found = [
            pool.submit(complete, ids, echo=echo, max_tokens=1)
            for ids, echo in [(tokens, True), (other, False), (other, True)] * 2
        ]
    want = log_probabilities(reference.logits[2], tokens)
    counts = []
    for future in found:
        got = future.result().choices[0].logprobs.token_logprobs
        counts.append(len(got))
        if len(got) == len(tokens) + 1:
            assert_close(got[1:-1], want, reference.logits[2])
    assert counts == [len(tokens) + 1, 1, len(other) + 1] * 2


def test_an_echo_is_streamed_too(complete):
    prompt = [int(t) for t in np.random.default_rng(6).integers(3, 320, 40)]
    whole = complete(prompt, echo=True, max_tokens=3).choices[0].logprobs
    chunks = list(complete(prompt, echo=True, max_tokens=3, stream=True))
    scores = [s for c in chunks for s in c.choices[0].logprobs.token_logprobs]
    assert scores[0] is None
    assert len(scores) == len(whole.token_logprobs) == 43
    np.testing.assert_allclose(scores[1:], whole.token_logprobs[1:], atol=1e-4)


def test_an_empty_prompt_is_refused(complete):
    with pytest.raises(BadRequestError):
        complete("")
