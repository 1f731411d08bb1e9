"""A prompt's scores in pieces, joined as the context goes through its steps."""

import math

import numpy as np
from max.pipelines.context import LogProbabilities, TextContext, TokenBuffer

from max_mistral.workarounds.log_probabilities import join


def context_of(length):
    return TextContext(
        max_length=64,
        tokens=TokenBuffer(np.arange(length, dtype=np.int64)),
        log_probabilities=1,
        log_probabilities_echo=True,
    )


def score(context):
    """What MAX gives of a step: here a token's score is minus its id."""
    start = context.tokens.processed_length
    following = range(start + 1, start + context.tokens.active_length + 1)
    return LogProbabilities(
        [-float(i) for i in following],
        [{i: -float(i)} for i in following],
        list(following),
    )


def prefill(context, *chunks):
    """Runs a step for each chunk, and returns what the last one joins."""
    for chunk in chunks:
        if chunk < context.tokens.active_length:
            context.tokens.chunk(chunk)
        joined = join(context, score(context))
        assert (joined is None) == context.tokens.actively_chunked
        # The next token: its id, and here its score, is its position.
        context.update(len(context.tokens), joined)
    return joined


def assert_whole(joined, length):
    want = list(range(1, length + 1))
    assert joined.sampled_token_ids == [0, *want]
    first, *others = joined.token_log_probabilities
    assert math.isnan(first)
    assert others == [-float(i) for i in want]
    assert joined.top_log_probabilities == [{}, *({i: -float(i)} for i in want)]


def test_one_step():
    assert_whole(prefill(context_of(7), 7), 7)


def test_chunks():
    context = context_of(10)
    assert_whole(prefill(context, 4, 1, 3, 2), 10)
    (given,) = context.to_generation_output().log_probabilities
    assert_whole(given, 10)
    assert not context._log_probabilities_data


def test_a_preemption_between_chunks():
    """Other chunks, and a beginning that is in the cache by then."""
    context = context_of(10)
    assert prefill(context, 4, 3) is None
    context.reset()
    context.tokens.skip_processing(4)
    assert_whole(prefill(context, 2, 4), 10)


def test_a_preemption_after_the_prompt():
    """The prompt's scores were given: what follows is scored alone."""
    context = context_of(5)
    prefill(context, 5)
    context.to_generation_output()
    context.reset()
    assert not context.log_probabilities_echo
