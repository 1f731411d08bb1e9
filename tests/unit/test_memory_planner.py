"""How many requests a server takes at a time where nobody has said it."""

from types import SimpleNamespace

import pytest
from max.driver import CPU
from max.pipelines.lib.memory_estimation import MemoryEstimator

from max_mistral import mistral_arch
from max_mistral.memory_planner import MOST_ON_A_CPU, MistralMemoryPlanner
from max_mistral.model_config import MistralConfig
from workbench.runner import make_pipeline_config


@pytest.mark.parametrize(("asked", "batch"), [(None, MOST_ON_A_CPU), (1, 1), (20, 20)])
def test_a_small_model_on_a_cpu(checkpoint, asked, batch):
    config = make_pipeline_config(checkpoint, max_batch_size=asked)
    plan = MemoryEstimator.plan(config, mistral_arch)
    assert plan.planned_max_batch_size == batch


def infer(config, free, weights, *, on_cpu=True):
    device = SimpleNamespace(is_host=on_cpu, stats={"free_memory": free})
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    return planner.infer_max_batch_size(config, [device], weights)


def test_a_quarter_of_what_the_weights_leave(checkpoint):
    config = make_pipeline_config(checkpoint, max_length=256)
    (params,) = MistralConfig.initialize(config).kv_groups
    request = params.bytes_per_block * 256 // params.page_size
    weights = 10 * request
    # MAX takes 90 % of what is free, and has a page for itself.
    for batch in range(1, MOST_ON_A_CPU + 1):
        free = (weights + 4 * (batch + 0.9) * request) / 0.9
        assert infer(config, free, weights) == batch
    assert infer(config, 2**50, weights) == MOST_ON_A_CPU
    assert infer(config, 0, weights) == 1


def test_a_gpu_has_what_max_picks(checkpoint):
    assert infer(make_pipeline_config(checkpoint), 2**40, 0, on_cpu=False) is None


def test_this_cpu_says_what_is_free():
    assert CPU().stats["free_memory"] >= 0
