"""Drafts for answers that copy a text and change names in it."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from max_mistral.lookup import follower as module
from max_mistral.lookup.drafts import SHORTEST
from max_mistral.lookup.follower import LONGEST_NAME, MOST_NAMES, Follower
from max_mistral.lookup.odds import MOST
from tests.unit.test_lookup import find

TEXTS = st.lists(st.integers(0, 3), max_size=80)


@given(TEXTS, st.integers(-1, 20))
def test_a_draft_is_what_followed(text, most):
    found = Follower().propose(np.array(text, np.int64), most)
    place = find(text)
    if place is None:
        assert not found.tokens
        return
    want = list(text)
    # What followed, and where that ends, what would follow it in turn.
    for _ in range(max(min(most, MOST), 0)):
        want.append(want[place.next + len(want) - len(text)])
    assert found.agreed == place.agreed
    assert found.tokens == want[len(text) :]


@given(TEXTS, st.integers(1, 3), st.integers(2, 80))
def test_what_stood_before_is_found_as_a_text_grows(text, step, searched):
    with mock.patch.object(module, "SEARCHED", searched):
        follower = Follower()
        begun = len(text) // 2
        for end in range(begun, len(text) + 1, step):
            draft = follower.propose(np.array(text[:end], np.int64), MOST)
            # Of the text that it began with the last tokens alone.
            assert find(text[max(begun - searched, 0) : end]) is None or draft.tokens
            assert len(draft.tokens) in (0, MOST)


def replay(prompt, answer, follower=None, most=MOST):
    """Returns the draft of each step, by the answer's tokens that came before.

    A step takes as many of its draft's first ``most`` tokens as are right, and the
    token after them.
    """
    follower, text = follower or Follower(), np.array(prompt + answer)
    found, at = {}, len(prompt)
    while at < len(text):
        draft = follower.propose(text[:at], MOST).tokens
        found[at - len(prompt)] = draft
        right = 0
        while right < min(len(draft), most, len(text) - at - 1):
            if draft[right] != text[at + right]:
                break
            right += 1
        at += right + 1
    follower.propose(text, MOST)
    return found


def filled(text, *names):
    """Returns a text of tokens with names at the place of -1, -2, ..."""
    return [t for token in text for t in (names[-token - 1] if token < 0 else [token])]


# A name between tokens that do not come again.
SOURCE = [50, 51, 52, -1, 53, 54, 55, 56, -1, 57, 58, 59, -1, 60, 61, 62, 63, 64]
ORDER = [91, 92, -1, 93, -2, 94]
NAMES = [[7], [7, 8], [7, 8, 9, 10]]


@pytest.mark.parametrize("most", [0, 1, MOST])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("old", [[1], [1, 2], [1, 2, 3, 4]])
@pytest.mark.parametrize("new", NAMES)
def test_a_new_name_is_drafted_once_it_was_seen(old, new, ordered, most):
    prompt = (filled(ORDER, old, new) if ordered else []) + filled(SOURCE, old)
    answer = filled(SOURCE, new)
    found = replay([*prompt, 90], answer, most=most)
    # The name's first mention comes as a surprise, and ends where two tokens agree.
    known = answer.index(7) + len(new) + SHORTEST
    drafts = {at: draft for at, draft in found.items() if at >= known}
    assert drafts
    for at, draft in drafts.items():
        rest = answer[at:]
        # Behind the source stands what is not in the answer.
        assert draft[: len(rest)] == rest[: len(draft)], at
        assert len(draft) == MOST


@pytest.mark.parametrize("most", [0, MOST])
@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", [[17], [17, 18]])
def test_two_names(first, second, most):
    # The one is known when the other comes, one token away.
    source = [49, 50, -1, 51, 52, 53, -1, 54, -2, 55, 56, -2, 57, 58, -1, 59]
    follower = Follower()
    answer = filled(source, first, second)
    replay([*filled(source, [1], [3, 4]), 90], answer, follower, most)
    assert follower._new_names == {(1,): tuple(first), (3, 4): tuple(second)}


def test_both_names_of_a_step_are_learned():
    # Drafts whose every token is verified: the second name comes in the same step.
    source = [50, 51, -1, 52, 53, 54, -2, 55, 56, 57]
    follower = Follower()
    found = replay([*filled(source, [1], [2]), 90], filled(source, [7], [8]), follower)
    assert follower._new_names == {(1,): (7,), (2,): (8,)}
    assert len(found) < len(source) - 2


def test_the_longest_name_counts():
    follower = Follower()
    text = np.array([50, 51, 1, 2, 52, 1, 53, 90, 50, 51])
    follower.propose(text[:-1], MOST)
    follower._new_names = {(1,): (7,), (1, 2): (8, 9)}
    draft = follower.propose(text, MOST).tokens
    assert draft[:5] == [8, 9, 52, 7, 53]


def test_a_token_may_differ_without_being_a_name():
    # Behind it the draft goes on at once, and the old token stays where it came back.
    answer = filled(SOURCE[:8], [7]) + filled(SOURCE[8:], [1])
    found = replay([*filled(SOURCE, [1]), 90], answer, most=0)
    assert found[4][:4] == answer[4:8]
    assert found[8][0] == 7
    assert found[9][:3] == answer[9:12]
    assert found[12][:6] == answer[12:]


def test_names_longer_than_some_tokens_are_not_learned():
    follower, new = Follower(), list(range(100, 101 + LONGEST_NAME))
    replay([*filled(SOURCE, [1]), 90], filled(SOURCE, new), follower, most=0)
    assert not follower._new_names


def test_the_oldest_names_are_forgotten():
    # Each name stands once, between tokens that stay.
    count = MOST_NAMES + 3
    kept = [[1000 + 3 * i, 1001 + 3 * i, 1002 + 3 * i] for i in range(count)]
    prompt = [t for i, three in enumerate(kept) for t in (*three, i)]
    answer = [t for i, three in enumerate(kept) for t in (*three, 500 + i)]
    follower = Follower()
    replay([*prompt, 90], answer, follower, most=0)
    # The last one's end was not seen.
    assert list(follower._new_names) == [(i,) for i in range(2, count - 1)]


@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.lists(st.integers(0, 5), max_size=40), max_size=12),
    st.lists(st.tuples(st.integers(-1, 20), st.integers(0, 20)), min_size=12),
)
@example(
    [0, 0, 1, 1, 1, 1],
    [[2, 3, 2, 2, 3], [], []],
    [(0, 0), (0, 16), (5, 0)] + [(0, 0)] * 9,
)
def test_any_text_can_be_followed(prompt, steps, taken):
    # Steps without drafts, of any length, come between, and another text may follow.
    follower, text = Follower(), np.array(prompt, np.int64)
    for came, (room, right) in zip(steps, taken, strict=False):
        draft = follower.propose(text, room)
        assert len(draft.tokens) in (0, max(min(room, MOST), 0))
        assert set(draft.tokens) <= set(text.tolist())
        if right > 15 and len(text):
            text = text[:-1] // 2
        else:
            text = np.concatenate([text, draft.tokens[:right], came]).astype(np.int64)


@pytest.mark.parametrize("tokens", [2**20, 3])
def test_a_long_text_takes_little_memory(tokens):
    # All of it would take 170 MiB.
    text, follower = np.arange(2**20) % tokens, Follower()
    tracemalloc.start()
    follower.propose(text[:-1], MOST)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    follower.propose(text, MOST)
    _, later = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert later - held < 4 * 2**20


def test_only_the_end_of_a_long_text_is_searched(monkeypatch):
    monkeypatch.setattr(module, "SEARCHED", 8)
    text = np.array([1, 2, 3, 0, 0, 0, 0, 0, 0, 1, 2])
    assert not Follower().propose(text, MOST).tokens
    assert Follower().propose(text[2:], MOST).tokens == []
    text = np.array([7, 7, 7, 1, 2, 3, 0, 1, 2])
    assert Follower().propose(text, 2).tokens == [3, 0]
