"""What ``max generate`` prints, without a model."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from max._entrypoints.cli import generate

from max_mistral.tokenizer import MistralTokenizer
from tests.vocabularies import write_real

TEXT = "Hello world, it is 日本 🙂🏳️‍🌈.\n\n  An é, naïve."


@pytest.fixture(params=["v1", "v3", "v3 tekken, images"])
def tokenizer(request, tmp_path, monkeypatch):
    """One of Mistral's, beside a ``max generate`` whose model has fixed answers."""

    async def stream_context(pipeline, context, on_tokens):
        for tokens in pipeline.steps:
            await on_tokens(tokens)

    monkeypatch.setattr(generate, "stream_context", stream_context)
    folder = write_real(tmp_path / "real", request.param)
    return MistralTokenizer(str(folder), None, max_length=8192)


def print_steps(tokenizer, steps):
    """Returns what is printed of an answer whose tokens come in these steps."""
    said = []

    async def on_tokens(tokens):  # as in stream_text_to_console
        said.append(await tokenizer.decode(tokens, skip_special_tokens=True))

    prompt = np.array(tokenizer.delegate.encode("Say something."))
    context = SimpleNamespace(tokens=SimpleNamespace(prompt=prompt))
    pipeline = SimpleNamespace(tokenizer=tokenizer, steps=steps)
    asyncio.run(generate.stream_context(pipeline, context, on_tokens))
    return "".join(said)


def test_all_of_an_answer_is_printed_however_it_comes(tokenizer):
    ids = tokenizer.delegate.encode(TEXT, add_special_tokens=False)
    for size in (1, 2, 3, len(ids)):
        steps = [ids[i : i + size] for i in range(0, len(ids), size)]
        for _ in range(2):  # each answer is its own
            assert print_steps(tokenizer, steps).lstrip() == TEXT


def test_what_is_not_printed_is_decoded_by_itself(tokenizer):
    """As of log-probabilities, and after an answer that was printed."""
    (*_, is_id) = tokenizer.delegate.encode("it is", add_special_tokens=False)
    print_steps(tokenizer, [[is_id]])
    for _ in range(2):
        assert asyncio.run(tokenizer.decode(np.array(is_id))) == " is"
        assert asyncio.run(tokenizer.decode(np.array([is_id]))) == " is"
