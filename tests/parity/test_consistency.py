"""The model against itself: generated and rescored, whole and in chunks.

A cache that is written or read wrongly shows here without any reference: the
same tokens must get the same probabilities however they reach the model.
"""

import numpy as np
import pytest
from max.driver import Buffer
from max.nn.transformer import ReturnLogits

from max_mistral import graph_config
from max_mistral.errors import UserError
from max_mistral.mistral import Mistral
from tests.harness import tolerance
from workbench.checkpoints import CONFIGS
from workbench.runner import Runner, split_logits

PROMPT = [int(t) for t in np.random.default_rng(2).integers(3, 320, 150)]


# Full attention, windows on some layers, and queries scaled by position.
@pytest.fixture(scope="module", params=["gqa", "ministral", "ministral3"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(runner, name):
    return runner(name, ReturnLogits.ALL)


@pytest.fixture(scope="module")
def assert_same(name):
    def assert_same(got, want):
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance(CONFIGS[name], want)
        )

    return assert_same


@pytest.fixture(scope="module")
def generated(model):
    """Tokens and logits of a prompt longer than a KV page, and 40 tokens more."""
    tokens, logits = model.generate([PROMPT], 40)
    return tokens[0], logits[0]


def test_rescoring_in_one_pass_agrees(model, generated, assert_same):
    tokens, logits = generated
    contexts = model.claim([tokens])
    (rescored,) = split_logits(model.step(contexts))
    model.release(contexts)
    assert_same(rescored[:-1], logits)


@pytest.mark.parametrize("chunk", [1, 50, 128])
def test_chunked_prefill_agrees(model, generated, assert_same, chunk):
    _, logits = generated
    contexts = model.claim([PROMPT])
    (context,) = contexts
    rows = []
    for outputs in model.in_chunks(context, chunk):
        rows += split_logits(outputs)
    model.release(contexts)
    assert_same(np.concatenate(rows), logits[: len(PROMPT)])


def test_a_prefix_from_the_cache_agrees(model, generated, assert_same):
    """MAX reuses the pages of an earlier request with the same prefix."""
    _, logits = generated
    first = model.claim([PROMPT])
    model.step(first)
    model.advance(first[0], int(logits[len(PROMPT) - 1].argmax()))
    model.release(first)

    second = model.claim([PROMPT], reuse_prefixes=True)
    inputs = model.inputs(second)
    reused = len(PROMPT) - second[0].tokens.active_length
    assert reused == 128  # a whole page
    (rows,) = split_logits(model.model.execute(inputs))
    model.release(second)
    assert_same(rows, logits[reused : len(PROMPT)])


def test_a_row_does_not_depend_on_its_neighbours(model, generated, assert_same):
    _, logits = generated
    others = [PROMPT[:3], PROMPT, PROMPT[5:90]]
    _, rows = model.generate(others, 1)
    assert_same(rows[1], logits[: len(PROMPT)])


def test_stale_kv_inputs_are_refused(model):
    contexts = model.claim([PROMPT])
    inputs = model.inputs(contexts)
    model.model.execute(inputs)
    stale = model.model.prepare_next_token_inputs(
        Buffer.from_numpy(np.array([5], dtype=np.int64)), inputs
    )
    with pytest.raises(UserError, match="kv_cache_inputs describe the step"):
        model.model.execute(stale)
    model.release(contexts)


def test_graph_inputs_are_what_execute_passes(model):
    contexts = model.claim([PROMPT])
    inputs = model.inputs(contexts)
    types = model.model.graph_inputs()
    model.release(contexts)
    assert [t.dtype for t in types] == [b.dtype for b in inputs.buffers]
    assert [t.rank for t in types] == [b.rank for b in inputs.buffers]


def test_a_step_waits_for_its_inputs(model, monkeypatch):
    """MAX copies them in the background; on a busy machine the copy came too late."""
    calls = []
    graph = model.model.model

    class Device:
        is_host = True

        def synchronize(self):
            calls.append("wait")

    class Graph:
        def execute(self, *buffers):
            calls.append("run")
            return graph.execute(*buffers)

    contexts = model.claim([PROMPT[:3]])
    inputs = model.inputs(contexts)
    monkeypatch.setattr(model.model, "devices", [Device()])
    monkeypatch.setattr(model.model, "model", Graph())
    model.model.execute(inputs)
    model.release(contexts)
    assert calls == ["wait", "run"]


def test_subgraphs_compute_the_same(monkeypatch, checkpoints, runner):
    """As larger models run: their blocks share a subgraph, and the last one computes
    only the tokens that are asked for."""
    prompts = [PROMPT, PROMPT[:3]]
    wants = runner("gqa", ReturnLogits.ALL).generate(prompts, 2)[1]
    groups, layer_groups = [], Mistral._layer_groups

    def shared(decoder):
        groups.append(layer_groups(decoder))
        return groups[-1]

    monkeypatch.setattr(Mistral, "_layer_groups", shared)
    monkeypatch.setattr(graph_config, "_SMALL_BLOCK", 0)
    large = Runner(checkpoints["gqa"], ReturnLogits.LAST_TOKEN)
    founds = large.generate(prompts, 2)[1]
    assert groups == [[list(range(CONFIGS["gqa"]["num_hidden_layers"]))]]
    for found, want in zip(founds, wants, strict=True):
        assert np.array_equal(found, want[-2:])
