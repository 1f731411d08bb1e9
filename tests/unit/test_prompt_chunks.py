"""A grammar stays where it is until the prompt is read whole."""

import numpy as np
import pytest
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.lib.pipeline_variants import text_generation

from max_mistral.workarounds.prompt_chunks import let_grammars_wait


class Grammar:
    """Notes what it is moved on by."""

    def __init__(self):
        self.tokens = []

    def try_consume_tokens(self, tokens):
        self.tokens += tokens
        return len(tokens)


@pytest.fixture
def step(monkeypatch):
    """What MAX's pipeline for CPUs does when a step has sampled a token."""
    name = "update_context_and_prepare_responses"
    monkeypatch.setattr(text_generation, name, getattr(text_generation, name))
    let_grammars_wait()
    let_grammars_wait()

    def step(sampled, *contexts):
        tokens = np.array([[token] for token in sampled], np.int32)
        return getattr(text_generation, name)(tokens, flat_batch=list(contexts))

    return step


def constrained(length):
    tokens = TokenBuffer(np.arange(length, dtype=np.int64))
    context = TextContext(max_length=64, tokens=tokens, grammar="any")
    context.grammar_state.grammar_enforced = True
    context.set_matcher(Grammar())
    return context


def test_a_grammar_waits_for_the_end_of_the_prompt(step):
    long, short = constrained(10), constrained(3)
    for chunk, sampled in ((4, 41), (5, 42), (None, 43), (None, 44)):
        if chunk:
            long.tokens.chunk(chunk)
        step([sampled, sampled], long, short)
    assert short.matcher.tokens == [41, 42, 43, 44]
    assert long.matcher.tokens == [43, 44]
    assert list(long.tokens.generated) == [43, 44]
