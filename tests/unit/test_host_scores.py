"""Log-probabilities without a graph, through MAX's own function that calls for them."""

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.pipelines.lib.log_probabilities import compute_log_probabilities_ragged

from max_mistral.workarounds.host_scores import TOP, HostScores, top_ids

# Each step of a sum in float32, relative to a sum of numbers of the same sign.
UNIT = 2.0**-23


def reference(row):
    values = row.astype(np.float64)
    values -= values.max()
    return values - np.log(np.exp(values).sum())


def rounding(row, want):
    """What is subtracted is rounded at its size, and the result at its own."""
    return 2 * UNIT * (np.abs(row).max() - want.min())


def score(logits, lengths, tokens, sampled, top, echo, *, every):
    """Returns what MAX makes of it; ``every``: logits of all tokens, not the last."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    return compute_log_probabilities_ragged(
        CPU(),
        HostScores(),
        input_row_offsets=offsets,
        logits=Buffer.from_numpy(logits) if every else None,
        next_token_logits=Buffer.from_numpy(
            np.ascontiguousarray(logits[offsets[1:] - 1]) if every else logits
        ),
        tokens=tokens,
        sampled_tokens=sampled,
        batch_top_n=top,
        batch_echo=echo,
    )


@pytest.mark.parametrize("vocabulary", [3, TOP, TOP + 1, 255, 256, 1000, 32768])
def test_what_follows_is_scored_under_the_row_before_it(vocabulary):
    rng = np.random.default_rng(0)
    lengths, echo, top = [4, 1, 3, 2], [True, True, False, False], [7, 1, 5, 0]
    logits = 5 * rng.standard_normal((10, vocabulary), dtype=np.float32)
    tokens = rng.integers(0, vocabulary, 10)
    sampled = rng.integers(0, vocabulary, 4)
    found = score(logits, lengths, tokens, sampled, top, echo, every=True)
    assert found[3] is None
    following = [[*tokens[1:4], sampled[0]], [sampled[1]], [sampled[2]]]
    # A request that does not echo has its last row scored.
    rows = [logits[:4], logits[4:5], logits[7:8]]
    for scores, ids, under, count in zip(found, following, rows, top, strict=False):
        assert scores.sampled_token_ids == ids
        for row, token, got, likeliest_ in zip(
            under,
            ids,
            scores.token_log_probabilities,
            scores.top_log_probabilities,
            strict=True,
        ):
            want = reference(row)
            allowed = rounding(row, want)
            assert abs(got - want[token]) < allowed
            best = np.argsort(-want)[:count]
            assert set(likeliest_) == {*best.tolist(), int(token)}
            for each, value in likeliest_.items():
                assert abs(value - want[each]) < allowed


def test_where_there_are_the_last_logits_only():
    logits = np.random.default_rng(1).standard_normal((2, 50), dtype=np.float32)
    found = score(
        *(logits, [3, 2], np.arange(5), np.array([7, 9]), [1, 1], [False, False]),
        every=False,
    )
    for row, scores, token in zip(logits, found, (7, 9), strict=True):
        assert scores.sampled_token_ids == [token]
        want = reference(row)
        off = abs(scores.token_log_probabilities[0] - want[token])
        assert off < rounding(row, want)


def test_logits_that_are_forbidden_or_far_apart():
    row = np.full((1, 600), -np.inf, np.float32)
    row[0, [3, 300, 599]] = 0, -1e4, 88
    (scores,) = score(
        row, [1], np.array([1]), np.array([599]), [7], [False], every=True
    )
    assert scores.token_log_probabilities == [0.0]
    assert scores.top_log_probabilities[0][599] == 0.0
    assert scores.top_log_probabilities[0][3] == -88.0


@pytest.mark.parametrize("size", [1, 7, 8, 256, 257, 5000])
def test_the_likeliest_of_many(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        # Few different values, so that many are alike.
        row = rng.integers(0, 50, size).astype(np.float32)
        found = top_ids(row, TOP)
        assert len(set(found.tolist())) == min(TOP, size)
        want = np.sort(row)[::-1][: len(found)]
        assert np.array_equal(np.sort(row[found])[::-1], want)
