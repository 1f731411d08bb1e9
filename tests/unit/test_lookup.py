"""Prompt lookup without a model: drafts, how many are worth it, rows and grammars."""

import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from max.driver import CPU, Buffer
from max.graph import default_custom_extensions
from max.pipelines.context import SamplingParams, TextContext, TokenBuffer
from max.pipelines.lib.pipeline_variants.utils import StructuredOutputHelper
from max.pipelines.sampling.sampling_logits_processor import _build_min_tokens_masks
from max.pipelines.sampling.seeds import request_row_seed

from max_mistral.errors import UserError
from max_mistral.kernels import library
from max_mistral.lookup import choice, drafts, enabled
from max_mistral.lookup.drafts import LONGEST, SHORTEST, Index
from max_mistral.lookup.grammar import masks_of_rows
from max_mistral.lookup.greedy import GreedySampler
from max_mistral.lookup.odds import (
    MARGIN,
    MOST,
    MOST_ROWS,
    Candidate,
    Cost,
    Odds,
    how_many,
    paid,
)
from max_mistral.lookup.rows import sampled_rows
from tests.tools import CITY, FIRST, TOOLS, grammar_of
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

TEXTS = st.lists(st.integers(0, 3), max_size=80)


@pytest.mark.parametrize(("value", "found"), [("on", True), ("off", False)])
def test_the_switch(monkeypatch, value, found):
    monkeypatch.setenv("MAX_MISTRAL_LOOKUP", value)
    assert enabled() is found
    monkeypatch.setenv("MAX_MISTRAL_LOOKUP", "1")
    with pytest.raises(UserError, match="MAX_MISTRAL_LOOKUP is '1'"):
        enabled()
    monkeypatch.delenv("MAX_MISTRAL_LOOKUP")
    assert enabled()


def agreement(text, end):
    """How many tokens up to ``end`` are those at the text's end."""
    count = 0
    while count < min(end + 1, LONGEST) and text[end - count] == text[-1 - count]:
        count += 1
    return count


def find(text):
    """Returns where most of a text's last tokens stood before."""
    index = Index()
    index.extend(text)
    return index.find()


@given(TEXTS, st.sampled_from([1, 3, 80]))
def test_the_place_found_is_that_of_the_longest_agreement(text, few):
    agreed = {end: agreement(text, end) for end in range(len(text) - 1)}
    last = [end for end in agreed if agreed[end] >= SHORTEST][-few:]
    with mock.patch.object(drafts, "FEW", few):
        place = find(text)
    if not last:
        assert place is None
        return
    best = max(agreed[end] for end in last)
    assert place == (max(end for end in last if agreed[end] == best) + 1, best)


@given(st.lists(TEXTS, max_size=5))
def test_a_text_is_found_in_as_it_grows(parts):
    index, text = Index(), []
    for part in parts:
        index.extend(part)
        text += part
        assert (index.find(), index.text) == (find(text), text)


def test_odds_learn_what_came():
    odds = Odds()
    before = list(odds.right)
    assert odds.learn(2, [5, 6, 7], [5, 6, 9]) == 2
    # Two of one kind, 2 and 3 agreed, were right; the next kind was wrong.
    assert odds.right[1] > before[1]
    assert odds.right[2] < before[2]
    assert odds.right[3:] == before[3:]
    assert odds.next_right(0) == odds.next_right(1) == odds.right[0] == before[0]
    for _ in range(200):
        odds.learn(40, [5], [5])
    assert odds.next_right(40) > 0.99
    assert odds.learn(2, [], [5]) == odds.learn(2, [5], []) == 0


@given(
    st.floats(1e-4, 1),
    st.floats(0.01, 1),
    st.floats(0, 0.5),
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=60),
)
def test_the_cost_of_a_row_is_found(base, slope, extra, steps):
    cost, slope, extra = Cost(), base * slope, base * extra
    assert not cost.known
    for rows, drafted in steps + [(1, False), (20, False), (2, True), (20, True)] * 30:
        cost.observe(rows, base + slope * rows + extra * drafted, drafts=drafted)
    assert cost.known
    for rows, drafted in ((1, False), (20, False), (20, True)):
        # The first guess still counts for a little.
        want = base + slope * rows + extra * drafted
        assert cost.estimate(rows, drafts=drafted) == pytest.approx(want, rel=0.2)


def test_a_step_that_was_interrupted_counts_for_little():
    cost = Cost()
    for _ in range(20):
        cost.observe(1, 0.01, drafts=False)
    cost.observe(1, 5.0, drafts=False)
    assert cost.estimate(1, drafts=False) < 0.012


def test_the_first_step_may_be_the_slow_one():
    cost = Cost()
    cost.observe(1, 5.0, drafts=False)
    cost.observe(1, 0.05, drafts=False)
    assert cost.estimate(1, drafts=False) == pytest.approx(0.05, rel=0.01)


def test_one_slow_step_among_the_first_stops_no_drafts():
    cost = Cost()
    cost.observe(1, 0.05, drafts=False)
    cost.observe(16, 5.0, drafts=True)
    for _ in range(100):
        assert how_many([Candidate(32, MOST, SURE)], cost) != [0]
        cost.observe(1, 0.05, drafts=False)


def test_rows_that_are_dear_from_the_first_on_are_soon_found_so():
    cost, likely = Cost(), Candidate(2, MOST, Odds([0.5] * 5))
    cost.observe(1, 0.05, drafts=False)
    assert how_many([likely], cost) != [0]
    for _ in range(6):
        cost.observe(16, 0.8, drafts=True)
        cost.observe(1, 0.05, drafts=False)
    assert how_many([likely], cost) == [0]


def test_what_was_learned_of_drafts_fades():
    cost = Cost()

    def dearness():
        return cost.estimate(8, drafts=True) / cost.estimate(1, drafts=False)

    for _ in range(30):
        cost.observe(1, 0.01, drafts=False)
        cost.observe(8, 0.08, drafts=True)
    dear = dearness()
    for _ in range(500):
        cost.observe(1, 0.01, drafts=False)
    assert dearness() < 2 < 6 < dear


def test_steps_that_got_slower_do_not_make_rows_cheap():
    # One long context, then eight short requests, whose drafts are always wrong.
    cost, odds = Cost(), [Odds() for _ in range(8)]
    for _ in range(150):
        cost.observe(1, 0.2, drafts=False)
    drafted = 0
    for _ in range(500):
        counts = how_many([Candidate(2, MOST, each) for each in odds], cost)
        rows = 8 + sum(counts)
        cost.observe(rows, 0.1 + 0.005 * rows, drafts=rows > 8)
        for each in odds:
            each.learn(2, [5], [6])
        drafted += rows - 8
    assert drafted < 0.02 * 8 * 500


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(1e-3, 1.0), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
@example([(1, 0.2, False), (8, 0.1, False)] * 50)
@example([(1, 0.119, False)] * 10 + [(16, 0.299, True)] * 40 + [(24, 0.075, True)] * 10)
def test_every_step_costs_something(steps):
    cost = Cost()
    for rows, seconds, drafted in steps:
        cost.observe(rows, seconds, drafts=drafted)
        few, many = (cost.estimate(rows, drafts=False) for rows in (1, 64))
        assert 0 < few <= many
        assert many <= cost.estimate(64, drafts=True)
        how_many([Candidate(2, MOST, Odds())] * 2, cost)


def steps_of(base, slope):
    """A cost that has been found to be this."""
    cost = Cost()
    for _ in range(200):
        for rows in (1, 8):
            cost.observe(rows, base + slope * rows, drafts=rows > 1)
            cost.observe(rows, base + slope * rows, drafts=False)
    return cost


SURE, UNSURE = Odds([1.0] * 5), Odds([0.05] * 5)


def test_how_many_drafts_are_worth_it():
    cheap, dear = steps_of(1, 0.01), steps_of(0.01, 1)
    assert how_many([], cheap) == []
    assert how_many([Candidate(2, 15, SURE)], Cost()) == [0]
    assert how_many([Candidate(2, 15, SURE)], cheap) == [15]
    assert how_many([Candidate(2, 15, SURE)], dear) == [0]
    assert how_many([Candidate(2, 0, SURE)], cheap) == [0]
    # The likelier draft first; the unlikely one is not worth even a cheap row, unless
    # it is the last of a tile.
    assert how_many([Candidate(2, 8, UNSURE), Candidate(2, 8, SURE)], cheap) == [0, 8]
    assert how_many([Candidate(2, 9, UNSURE), Candidate(2, 9, SURE)], cheap) == [1, 9]
    # Each of a draft's tokens is of a likelier kind than those before it.
    likelier = Candidate(3, 7, Odds([0.5, 0.5, 1.0, 1.0, 1.0]))
    assert how_many([likelier], steps_of(1, 0.2)) == [7]


def test_rows_are_taken_by_tiles():
    """Of 4 requests a fifth row costs more than two."""
    assert [paid(rows) for rows in (1, 2, 4, 8, 16, 32)] == [1, 2, 4, 8, 16, 33.5]
    assert [paid(rows) for rows in (3, 7, 15)] == [4, 8, 16]
    assert paid(5) > paid(4) + 2
    cost = steps_of(1, 0.3)  # about that of 1.1B in Q4_K
    likely, none = Candidate(2, 1, Odds([0.8] * 5)), Candidate(2, 0, SURE)
    assert how_many([likely] * 4, cost) == [1] * 4
    assert how_many([likely, none, none, none], cost) == [0] * 4


def test_under_load_there_are_no_drafts():
    # From 32 rows a matmul is bound by its arithmetic: each row costs a whole one.
    load = Cost()
    for _ in range(200):
        for rows in (32, 40):
            load.observe(rows, rows / 32, drafts=rows > 32)
    assert how_many([Candidate(2, 15, Odds())] * 32, load) == [0] * 32
    assert how_many([Candidate(2, 15, SURE)] * MOST_ROWS, steps_of(1, 0.001)) == (
        [0] * MOST_ROWS
    )


@given(
    st.lists(
        st.tuples(st.integers(2, 40), st.integers(0, 15), st.floats(0, 1)),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.01, 1),
)
def test_no_other_number_of_drafts_is_much_better(candidates, slope):
    cost = steps_of(1, slope)
    made = [Candidate(a, n, Odds([right] * 5)) for a, n, right in candidates]

    def rate(chosen):
        tokens = sum(
            sum(right**i for i in range(count + 1))
            for count, (_, _, right) in zip(chosen, candidates, strict=True)
        )
        rows = len(chosen) + sum(chosen)
        return tokens / cost.estimate(rows, drafts=any(chosen))

    found = how_many(made, cost)
    assert all(count <= n for count, (_, n, _) in zip(found, candidates, strict=True))
    assert rate(found) >= rate([0] * len(found)) * (1 - 1e-9)
    for i, (_, most, _) in enumerate(candidates):
        for count in range(most + 1):
            other = [*found[:i], count, *found[i + 1 :]]
            # What a step with drafts must bring more is what may be lost.
            assert rate(other) <= rate(found) * MARGIN * (1 + 1e-9)


def context_of(tokens, answered, **sampling):
    context = TextContext(
        max_length=64,
        tokens=TokenBuffer(np.array(tokens, np.int64)),
        sampling_params=SamplingParams(**sampling),
    )
    for token in answered:
        context.update(token)
    return context


def test_a_row_is_sampled_as_its_place_would_be():
    draft = np.array([7, 8, 9])
    context = context_of([1, 2, 3], [4], seed=11, temperature=0.5)
    rows = sampled_rows([context], [draft])
    assert len(rows) == 1 + len(draft)
    for i, row in enumerate(rows):
        there = context_of([1, 2, 3], [4, *draft[:i]], seed=11, temperature=0.5)
        assert request_row_seed(row) == request_row_seed(there)
        assert row.tokens.all.tolist() == there.tokens.all.tolist()
        assert row.tokens.generated.tolist() == there.tokens.generated.tolist()
        assert len(row.tokens) == len(there.tokens)
        assert row.sampling_params.temperature == 0.5


def test_a_row_has_what_max_reads_for_min_tokens():
    rows = sampled_rows([context_of([1, 2], [4])], [np.array([7, 8])])
    masks = _build_min_tokens_masks(rows, 1, CPU(), enable_min_tokens=True)
    assert [mask.shape for mask in masks] == [(0, 2)]


def structured_output(server):
    """What MAX's pipeline for a server's model holds grammars by."""
    return StructuredOutputHelper.from_tokenizer(
        server.tokenizer,
        enable_structured_output=True,
        tool_parser_name=server.config.runtime.tool_parser,
        any_whitespace=True,
    )


@pytest.fixture
def helper(v13):
    return structured_output(v13)


def allowed(mask, token):
    return bool(mask[token // 32] >> (token % 32) & 1)


@pytest.mark.parametrize("wrong", [None, 0, 5])
def test_a_draft_ends_where_the_grammar_forbids_it(v13, helper, wrong):
    grammar = grammar_of(v13, tools=TOOLS, tool_choice="required")
    ids = v13.ids(FIRST["v13"])
    answered, draft = ids[:1], np.array(ids[1:11])
    if wrong is not None:
        draft[wrong] = 2  # the end, in the middle of a call
    free, bound = context_of([1, 5], [6]), context_of([1, 5], [])
    bound.grammar = grammar
    helper.update_context(bound, helper.allocate_bitmask(1), 0)
    for token in answered:
        bound.update(token)
    state = json.dumps(bound.snapshot_grammar_state(), default=repr)

    masks, kept = masks_of_rows(helper, [free, bound], [draft[:2], draft])

    assert kept[0].tolist() == draft[:2].tolist()
    assert kept[1].tolist() == draft[:wrong].tolist()
    assert len(masks) == 3 + 1 + len(kept[1])
    assert (masks[:3] == -1).all()
    # Each row's mask is that of plain decoding, from the same matcher.
    assert json.dumps(bound.snapshot_grammar_state(), default=repr) == state
    for row, token in zip(masks[3:], [*kept[1].tolist(), None], strict=True):
        plain = helper.allocate_bitmask(1)
        helper.update_context(bound, plain, 0)
        assert (plain[0] == row).all()
        assert not allowed(row, 2)
        if token is not None:
            assert allowed(row, token)
            bound.update(token)


def test_a_draft_ends_before_a_token_that_only_the_model_has(v13, helper):
    bound = context_of([1, 5], [])
    bound.grammar = grammar_of(v13, tools=TOOLS, tool_choice="required")
    helper.update_context(bound, helper.allocate_bitmask(1), 0)
    beyond = 32 * helper.allocate_bitmask(1).shape[1]
    draft = np.array([v13.ids(FIRST["v13"])[0], beyond])
    _, (kept,) = masks_of_rows(helper, [bound], [draft])
    assert kept.tolist() == draft[:1].tolist()


def test_a_draft_that_ends_thinking_leaves_the_request_thinking(v13, helper):
    """It is not said yet: the walk along it is undone, also in MAX's own state."""
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    context = context_of([1, 5], [])
    context.grammar = grammar_of(v13, response_format=form)
    # As MAX has it where a prompt begins the thinking.
    context.set_thinking_region(None, v13.ids("[/THINK]"))
    context.grammar_state._in_thinking_region = True
    context.grammar_state.has_json_schema = True
    helper.update_context(context, helper.allocate_bitmask(1), 0)
    before = context.snapshot_grammar_state()
    draft = np.array(v13.ids("Hm.[/THINK]{"))

    masks, (kept,) = masks_of_rows(helper, [context], [draft])

    assert kept.tolist() == draft.tolist()
    assert context.snapshot_grammar_state() == before
    # The grammar holds from the end of the thinking on.
    held = [bool((mask != -1).any()) for mask in masks]
    assert held == [False] * 4 + [True] * 2


def sampler_inputs(logits, top_k, *more):
    rows = len(logits)
    each = [
        logits.astype(np.float32),
        np.full((rows, 1), 9, np.int64),
        np.array(top_k, np.int64),
        np.array(1, np.int64),
        *(np.ones(rows, np.float32) for _ in range(2)),
        np.array(1, np.float32),
        np.zeros(rows, np.float32),
        np.arange(rows, dtype=np.uint64),
        *more,
    ]
    return [Buffer.from_numpy(value) for value in each]


def test_rows_that_are_all_greedy_take_the_likeliest_token():
    def sampler(*inputs):
        raise AssertionError("MAX's sampler is for others")

    # The last is the model's padding, for which there is no token.
    logits = np.array([[0.0, 3.0, 1.0, 9.0], [5.0, -1.0, 4.0, 9.0]])
    found = GreedySampler(sampler, 3)(*sampler_inputs(logits, [1, 1]))
    tokens, so_far, seed = (value.to_numpy().tolist() for value in found)
    assert (tokens, so_far, seed) == ([1, 0], [[9, 1], [9, 0]], [0, 1])


@pytest.mark.parametrize(
    ("top_k", "more", "width"),
    [([1, 40], [], 3), ([1, -1], [], 3), ([1, 1], [np.zeros(2)], 3), ([1], [], 2**21)],
)
def test_all_others_are_left_to_max(top_k, more, width):
    found = GreedySampler(lambda *inputs: len(inputs), None)
    inputs = sampler_inputs(np.zeros((len(top_k), width)), top_k, *more)
    assert found(*inputs) == len(inputs)


@pytest.mark.parametrize(
    ("variable", "value", "chosen", "shared"),
    [
        ("MAX_MISTRAL_LOOKUP", "on", "LookupPipeline", True),
        ("MAX_MISTRAL_LOOKUP", "off", "LookupPipeline", True),
        ("MAX_MISTRAL_KERNELS", "off", "MAX's", False),
    ],
)
def test_all_graphs_of_a_pipeline_share_the_kernels(
    tmp_path, monkeypatch, variable, value, chosen, shared
):
    def pipeline_called(name):
        return lambda **kwargs: (name, default_custom_extensions())

    monkeypatch.setattr(choice, "LookupPipeline", pipeline_called("LookupPipeline"))
    monkeypatch.setattr(
        choice, "get_pipeline_for_task", lambda *_: pipeline_called("MAX's")
    )
    monkeypatch.setenv(variable, value)
    config = make_pipeline_config(write_checkpoint(tmp_path, BASE))
    name, extensions = choice.make_pipeline(pipeline_config=config)
    assert name == chosen
    assert list(extensions) == ([library()] if shared else [])
    assert not default_custom_extensions()
