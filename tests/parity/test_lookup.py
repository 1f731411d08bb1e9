"""Prompt lookup with a real model: what comes is what comes without it."""

import json

import numpy as np
import pytest
from max._entrypoints.cli.generate import TrackMetrics
from max._entrypoints.cli.metrics import TextGenerationMetrics
from transformers import AutoTokenizer

from max_mistral.lookup import pipeline
from max_mistral.lookup.drafts import Draft
from max_mistral.lookup.follower import Follower
from workbench.batch import Batch, Request
from workbench.demo import GGUF
from workbench.lookup_texts import KINDS, texts

# So long that an answer repeats itself.
COLOURS = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 9}
SAMPLINGS = {
    "greedy": {"top_k": 1},
    "likely": {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 5},
    "any": {"temperature": 1.2, "seed": 7},
    "penalized": {"top_k": 1, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
}
CONTEXTS = {"plain": {}, "scores": {"log_probabilities": 2}}
# As an answer in JSON, and as a tool that may be called or not.
CONTEXTS["json"] = CONTEXTS["offered"] = {"json_schema": json.dumps(COLOURS)}


@pytest.fixture(scope="module")
def batch(demo_model):
    return Batch(
        demo_model,
        weight_path=[GGUF],
        max_length=2048,
        max_batch_size=8,
        enable_penalties=True,
    )


@pytest.fixture(autouse=True)
def every_draft(monkeypatch):
    """Verifies all drafts, whatever a row costs on this machine."""
    monkeypatch.setattr(
        pipeline, "how_many", lambda found, _: [c.tokens for c in found]
    )


@pytest.fixture(scope="module")
def ask(demo_model):
    """Returns the tokens of a question."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)

    def tokens(question):
        chat = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )

    return tokens


@pytest.fixture(scope="module")
def prompts(ask):
    return [ask(text.prompt) for kind in KINDS for text in texts(kind)[:2]]


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_text_is_that_without(batch, prompts, name, kind):
    requests = [
        Request(prompt, 32, SAMPLINGS[name], CONTEXTS[kind], enforced=kind == "json")
        for prompt in prompts
    ]
    plain = batch.answer(requests, lookup=False, max_steps=True)
    found = batch.answer(requests, lookup=True)
    assert found.tokens == plain.tokens
    assert found.scores == plain.scores
    assert plain.drafted == 0
    assert 0 < found.right < found.drafted


def test_without_drafts_a_step_of_ours_is_maxs(batch, prompts):
    requests = [Request(prompt, 16) for prompt in prompts]
    plain = batch.answer(requests, lookup=False, max_steps=True)
    found = batch.answer(requests, lookup=False)
    assert found.tokens == plain.tokens
    assert found.drafted == 0
    assert found.steps == plain.steps


def test_max_generate_drafts_and_counts_each_token(batch, prompts):
    counted = TextGenerationMetrics()
    counts = {"top_k": 1, "logits_processors": [TrackMetrics(counted)]}
    found = batch.answer([Request(prompts[0], 32, counts)], lookup=True)
    assert found.right > 0
    assert counted.output_size == len(found.tokens[0])
    assert counted.prompt_size == len(prompts[0])


def test_other_processors_see_plain_steps(batch, prompts):
    seen = []

    def look(inputs):
        seen.append(len(inputs.context.tokens))

    looked = {"top_k": 1, "logits_processors": [look]}
    found = batch.answer([Request(prompts[0], 8, looked)], lookup=True)
    assert found.drafted == 0
    assert np.diff(seen).tolist() == [1] * (len(found.tokens[0]) - 1)


# Answers of each way, tokens of each, and how often the labels are drawn anew.
ANSWERS, LENGTH, SHUFFLES = 160, 8, 2000


def test_tokens_are_drawn_by_their_chances(batch, ask, monkeypatch):
    # A drafted token that came more often than by its chance would come more often
    # than without drafts. That the draws are the same ones is the test above.
    prompt = ask("Write on: one two three, one two three, one two three, one")
    tokens = np.full((2 * ANSWERS, LENGTH), -1)
    rng, right = np.random.default_rng(3), 0

    def propose(self, text, room):
        # What most answers without drafts have there.
        places = tokens[:ANSWERS, len(text) - len(prompt) :].T
        likely = [np.bincount(place[place >= 0]).argmax() for place in places]
        return Draft([int(token) for token in likely[:room]], 2)

    monkeypatch.setattr(Follower, "propose", propose)
    for at in range(0, 2 * ANSWERS, 8):
        # Other seeds for each: the samples know nothing of each other.
        requests = [
            Request(prompt, LENGTH, {"temperature": 1.5, "top_k": 4, "seed": 7919 * i})
            for i in range(at, at + 8)
        ]
        answers = batch.answer(requests, lookup=at >= ANSWERS)
        right += answers.right
        for row, answer in zip(tokens[at:], answers.tokens, strict=False):
            row[: len(answer)] = answer
    assert right > ANSWERS / 2
    # Which tokens each answer has, and where.
    cells = [column[:, None] == np.unique(column) for column in tokens.T]
    has = np.concatenate(cells, axis=1).astype(int)
    drafted = np.repeat([False, True], ANSWERS)
    found, *others = [
        difference(has, labels)
        for labels in [drafted, *(rng.permutation(drafted) for _ in range(SHUFFLES))]
    ]
    # Were it by chance who is called drafted, the difference would be any of these.
    assert sum(other >= found for other in others) > SHUFFLES // 1000


def difference(has, labels):
    """Of two halves of a sample, as chi-squared has it."""
    total, half = has.sum(axis=0), has[labels].sum(axis=0)
    return ((2 * half - total) ** 2 / total).sum()
