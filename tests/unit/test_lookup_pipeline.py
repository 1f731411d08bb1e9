"""Steps of the pipeline that verifies drafts, without a model."""

from types import SimpleNamespace
from unittest.mock import ANY, Mock

import numpy as np
import pytest
from max.pipelines.context import EOSTracker
from max.pipelines.lib import TextGenerationPipeline
from max.pipelines.modeling.types import TextGenerationInputs

from max_mistral.lookup import pipeline as lookup
from max_mistral.lookup.counts import Counts
from max_mistral.lookup.follower import Follower
from max_mistral.lookup.odds import MOST
from max_mistral.lookup.rows import NO_TOKENS
from tests.tools import FIRST, TOOLS, grammar_of
from tests.unit.test_lookup import context_of, structured_output


@pytest.fixture
def pipeline():
    """What MAX's constructor would load and compile is made up."""
    made = lookup.LookupPipeline.__new__(lookup.LookupPipeline)
    sampling = SimpleNamespace(enable_min_tokens=False)
    made._pipeline_config = SimpleNamespace(
        sampling=sampling, needs_bitmask_constraints=True
    )
    made._pipeline_model = Mock()
    made._kv_manager = Mock()
    made._kv_manager.params.page_size = 128
    made._drafts = True
    made._followers = {}
    made._counts = None
    made.batch_info_output_fname = None
    return made


@pytest.mark.parametrize(("value", "count"), [("on", 8), ("off", 0)])
def test_the_switch_decides_whether_there_are_drafts(
    pipeline, monkeypatch, value, count
):
    """Of a pipeline whose own constructor has run."""
    attributes = vars(pipeline) | {
        "_sampler_without_bitmask": Mock(),
        "vocab_size": 32,
    }
    own = ("_drafts", "_followers", "_counts")
    attributes = {key: v for key, v in attributes.items() if key not in own}
    monkeypatch.setattr(
        TextGenerationPipeline, "__init__", lambda self: vars(self).update(attributes)
    )
    monkeypatch.setattr(lookup, "how_many", lambda candidates, cost: [8])
    monkeypatch.setenv("MAX_MISTRAL_LOOKUP", value)
    made = lookup.LookupPipeline()
    steps = []

    def step(inputs, drafts):
        steps.append([len(draft) for draft in drafts])
        made._counts = Counts(MOST, drafted=count, came=1)
        return {}

    made._step = step
    context = context_of([*range(1, 11)] * 2, [1])
    made._execute(TextGenerationInputs(batches=[[context]]))
    assert steps == [[count]]


@pytest.mark.parametrize("left", [0, 3])
def test_the_cost_is_told_of_the_rows_that_ran(pipeline, monkeypatch, left):
    """Of eight drafts that were chosen a grammar leaves none, or three."""
    context = context_of([*range(1, 11)] * 2, [1])
    # A new one's step is not counted.
    pipeline._followers[context.request_id] = Follower()
    pipeline._cost = Mock()

    def step(inputs, drafts):
        assert [draft.tolist() for draft in drafts] == [[2, 3, 4, 5, 6, 7, 8, 9]]
        pipeline._counts = Counts(MOST, drafted=left, came=1)
        return {}

    pipeline._step = step
    monkeypatch.setattr(lookup, "how_many", lambda candidates, cost: [8])
    pipeline._execute(TextGenerationInputs(batches=[[context]]))
    pipeline._cost.observe.assert_called_once_with(1 + left, ANY, drafts=left > 0)


def test_a_minimum_of_tokens_takes_drafts_until_it_is_reached(pipeline):
    pipeline._pipeline_config.sampling.enable_min_tokens = True
    context = context_of([1, 2], [3], min_new_tokens=2)
    context.eos_tracker = EOSTracker(eos_token_ids={9})

    def found():
        (forbidden,) = context.get_min_token_logit_mask(1)
        return pipeline._may_draft(context), len(forbidden)

    assert found() == (False, 1)
    context.update(4)
    assert found() == (True, 0)


@pytest.mark.parametrize("called", [False, True])
def test_a_mask_that_forbids_nothing_is_none(pipeline, v13, called):
    """Tools are offered; their grammar holds from the beginning of a call on."""
    helper = pipeline._structured_output = structured_output(v13)
    context = context_of([1, 5], [6])
    context.grammar = grammar_of(v13, tools=TOOLS, tool_choice="auto")
    helper.update_context(context, helper.allocate_bitmask(1), 0)
    begin, name = v13.ids(FIRST["v13"])[:2]
    if called:
        context.update(begin)
    masks = []

    def sample(rows, outputs, mask):
        assert rows == [context]
        masks.append(mask)
        return np.array([name])

    pipeline._sample = sample
    inputs = TextGenerationInputs(batches=[[context]])
    pipeline._step(inputs, [NO_TOKENS])
    (mask,) = masks
    if called:
        assert mask.shape == helper.allocate_bitmask(1).shape
        assert (mask != -1).any()
    else:
        assert mask is None
    assert context.tokens.all[-1] == name
