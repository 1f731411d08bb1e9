"""How many requests a server takes at a time where nobody has said it."""

from types import SimpleNamespace

import pytest
from max.driver import DeviceSpec
from max.pipelines.lib import memory_estimation
from max.pipelines.lib.memory_estimation import MemoryEstimator

from max_mistral import memory_planner, mistral_arch
from max_mistral.memory_planner import MOST_ON_A_CPU, MistralMemoryPlanner
from max_mistral.model_config import MistralConfig
from tests.harness import virtual_gpus
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config


@pytest.mark.parametrize(("asked", "batch"), [(None, MOST_ON_A_CPU), (1, 1), (20, 20)])
def test_a_small_model_on_a_cpu(checkpoint, asked, batch):
    config = make_pipeline_config(checkpoint, max_batch_size=asked)
    plan = MemoryEstimator.plan(config, mistral_arch)
    assert plan.planned_max_batch_size == batch


LENGTH = 256


@pytest.mark.parametrize(
    ("longest", "batch", "pages"),
    [
        (2**20, MOST_ON_A_CPU, 8 * 2 + 1),  # all that they may need
        (20, MOST_ON_A_CPU, 20 / 4 * 3),
        (2, MOST_ON_A_CPU, 1.25 * 3),
        (1.1, 1, 3),
        (0, 1, 3),
    ],
)
def test_requests_share_a_quarter_of_what_the_weights_leave(
    checkpoint, monkeypatch, longest, batch, pages
):
    """Of a request of two pages; MAX keeps one more for itself.

    Args:
        longest: For how many of the longest sequences the weights leave room.
        batch: How many requests are taken.
        pages: How many pages they share.
    """
    config = make_pipeline_config(checkpoint, max_length=LENGTH, max_batch_size=None)
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    (params,) = planner.config.kv_groups
    assert 2 * params.page_size == LENGTH
    page = params.bytes_per_block
    # MAX takes 90 % of what is free; it counts the memory that is there.
    free = (planner.estimate_weights_size(config) + longest * 3 * page) / 0.9
    monkeypatch.setattr(memory_planner, "free_memory", lambda: free)
    cpu = SimpleNamespace(
        is_host=True, stats={"free_memory": 2**44}, max_single_alloc_size=2**60
    )
    monkeypatch.setattr(memory_estimation, "load_devices", lambda specs: [cpu])
    plan = MemoryEstimator.plan(config, mistral_arch)
    assert plan.planned_max_length == LENGTH
    assert plan.planned_max_batch_size == batch
    assert plan.available_cache_memory / page == pytest.approx(pages, abs=0.01)


@pytest.mark.parametrize("why", ["penalties", "min_tokens", "prefill_first"])
def test_where_none_may_lose_its_pages_each_has_room(checkpoint, monkeypatch, why):
    flags = {} if why == "prefill_first" else {f"enable_{why}": True}
    if not flags:
        monkeypatch.setenv("MAX_SERVE_BATCH_PRIORITY", why)
    config = make_pipeline_config(
        checkpoint, max_length=LENGTH, max_batch_size=None, **flags
    )
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    (params,) = planner.config.kv_groups
    page = params.bytes_per_block
    for batch in range(1, MOST_ON_A_CPU + 1):
        # A quarter of it is for each two pages, and for the one of MAX's.
        free = 4 * (2 * batch + 1.5) * page / 0.9
        monkeypatch.setattr(memory_planner, "free_memory", lambda free=free: free)
        device = SimpleNamespace(is_host=True)
        assert planner.infer_max_batch_size(config, [device], 0) == batch
        assert planner.estimate_activation_memory(config, None) == 0


def test_a_gpu_has_what_max_picks(checkpoint):
    config = make_pipeline_config(checkpoint)
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    device = SimpleNamespace(is_host=False)
    assert planner.infer_max_batch_size(config, [device], 0) is None


def weights_of(folder, **flags):
    """What is planned, and what the weights take in float32."""
    config = make_pipeline_config(folder, **flags)
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return planner.estimate_weights_size(config), stored


def test_weights_that_stay_as_they_are(tmp_path):
    folder = write_checkpoint(tmp_path / "m", BASE, dtype="bfloat16")
    planned, stored = weights_of(folder)
    assert planned == stored


def test_weights_that_maxs_operations_take(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "m", BASE, dtype="bfloat16")
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    planned, stored = weights_of(folder)
    # Twice, but for the file's header.
    assert 1.9 * stored < planned < 2 * stored


@pytest.mark.parametrize("replicas", [1, 2])
def test_weights_of_replicas_that_become_bfloat16_on_gpus(checkpoint, replicas):
    flags = {
        "quantization_encoding": "bfloat16",
        "device_specs": [DeviceSpec.accelerator(i) for i in range(replicas)],
        "data_parallel_degree": replicas,
    }
    with virtual_gpus("sm_100a"):
        planned, float32 = weights_of(checkpoint, **flags)
    assert 0.95 * float32 < 2 * planned / replicas < float32


def logits_of(folder, **flags):
    """The bytes that are planned for a step's logits, with 100 tokens a step."""
    flags = {"enable_echo": True, "max_batch_input_tokens": 100} | flags
    config = make_pipeline_config(folder, **flags)
    planner = MistralMemoryPlanner(MistralConfig.initialize(config))
    return planner.estimate_activation_memory(config, None)


@pytest.mark.parametrize("echo", [False, True])
def test_echo_keeps_the_logits_of_all_rows(checkpoint, echo):
    planned = logits_of(checkpoint, enable_echo=echo)
    assert planned == (100 * BASE["vocab_size"] * 4 if echo else 0)


@pytest.mark.parametrize(("batch", "rows"), [(4, 100 + 256), (1, 256)])
def test_without_chunks_a_whole_prompt_comes_on_top(checkpoint, batch, rows):
    flags = {"max_batch_size": batch, "max_length": 256}
    planned = logits_of(checkpoint, enable_chunked_prefill=False, **flags)
    assert planned == rows * BASE["vocab_size"] * 4


@pytest.mark.parametrize(("replicas", "number"), [(1, 2 + 4), (2, 2 + 4 + 3 * 4)])
def test_the_first_device_has_room_for_all_logits(tmp_path, replicas, number):
    """In bfloat16 and float32; then those of another replica, and of both together."""
    write_checkpoint(tmp_path, BASE, dtype="bfloat16")
    with virtual_gpus("sm_90a"):
        planned = logits_of(
            tmp_path,
            device_specs=[DeviceSpec.accelerator(i) for i in range(2)],
            data_parallel_degree=replicas,
            quantization_encoding="bfloat16",
            weight_path=[tmp_path / "model.safetensors"],
        )
    assert planned / 2 == 100 * BASE["vocab_size"] * number


@pytest.mark.parametrize(("batch", "rows"), [(1, 64), (2, 100)])
def test_echo_has_no_more_rows_than_requests_have(checkpoint, batch, rows):
    planned = logits_of(checkpoint, max_batch_size=batch, max_length=64)
    assert planned == rows * BASE["vocab_size"] * 4
