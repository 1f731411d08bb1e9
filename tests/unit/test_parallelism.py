"""How devices share a model: what is refused, what is copied, what the graph takes."""

import re
from dataclasses import fields, replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from max import tree
from max.driver import CPU, Buffer, DeviceSpec
from max.dtype import DType
from max.nn.kv_cache import KVCacheInputsPerDevice
from max.nn.transformer import ReturnLogits
from max.pipelines.architectures.llama3.batch_processor import (
    Llama3BatchProcessorBase,
)

from max_mistral import MistralConfig, MistralInputs
from max_mistral.batch_processor import MistralBatchProcessor
from max_mistral.errors import UserError
from max_mistral.inputs import in_order
from max_mistral.weights.heads import repeat_heads
from tests.harness import build, load_safetensors, virtual_gpus
from workbench.checkpoints import BASE, CONFIGS, make_tensors, write_checkpoint
from workbench.quantized import CONFIG, LAYOUTS, write_quantized
from workbench.runner import make_pipeline_config

WIDE = BASE | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


def pipeline(folder, devices, **flags):
    flags = {
        "device_specs": [DeviceSpec.accelerator(i) for i in range(devices)],
        "quantization_encoding": "bfloat16",
        "weight_path": [folder / "model.safetensors"],
    } | flags
    return make_pipeline_config(folder, **flags)


def trace(pipeline_config, return_logits=ReturnLogits.LAST_TOKEN, gpu="sm_90a"):
    """Traces the graph that MAX would compile, with all its weights."""
    with virtual_gpus(gpu):
        graph = build(pipeline_config, return_logits)
        types = tree.leaves(graph.input_tree())
        # With its subgraphs, the blocks.
        traced = str(graph.trace(*types)._mlir_op.block.owner)
    # A captured device graph cannot wait for the device.
    assert "transfer" in traced or len(pipeline_config.model.device_specs) == 1
    assert not re.search(r'transfer.* to <"cpu"', traced)
    return types


@pytest.mark.parametrize(
    ("devices", "replicas"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2)]
)
def test_devices_and_replicas(tmp_path, devices, replicas):
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    trace(pipeline(tmp_path, devices, data_parallel_degree=replicas))


@pytest.mark.parametrize("return_logits", [ReturnLogits.ALL, ReturnLogits.VARIABLE])
def test_replicas_with_more_logits(tmp_path, return_logits):
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    trace(pipeline(tmp_path, 4, data_parallel_degree=2), return_logits)


@pytest.mark.parametrize("name", ["window", "ministral", "ministral3", "mha_tied"])
@pytest.mark.parametrize(("devices", "replicas"), [(2, 1), (2, 2)])
def test_every_kind_of_model(tmp_path, name, devices, replicas):
    write_checkpoint(tmp_path, CONFIGS[name], dtype="bfloat16")
    trace(pipeline(tmp_path, devices, data_parallel_degree=replicas, max_length=None))


@pytest.mark.parametrize("name", ["static", "block", "channel", "autofp8_dynamic"])
@pytest.mark.parametrize(("devices", "replicas"), [(2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("kept", ["keep", "bfloat16"])
def test_fp8(tmp_path, monkeypatch, name, devices, replicas, kept):
    monkeypatch.setenv("MAX_MISTRAL_FP8", kept)
    write_quantized(tmp_path, LAYOUTS[name], CONFIG | {"intermediate_size": 512})
    flags = {"quantization_encoding": "float8_e4m3fn"}
    flags["data_parallel_degree"] = replicas
    trace(pipeline(tmp_path, devices, **flags))


@pytest.mark.parametrize("name", ["nvfp4", "modelopt_nvfp4"])
@pytest.mark.parametrize(("devices", "replicas"), [(2, 1), (4, 1), (2, 2)])
def test_nvfp4(tmp_path, name, devices, replicas):
    write_quantized(tmp_path, LAYOUTS[name], CONFIG | {"intermediate_size": 512})
    flags = {"quantization_encoding": "float4_e2m1fnx2"}
    flags["data_parallel_degree"] = replicas
    trace(pipeline(tmp_path, devices, **flags), gpu="sm_100a")


def test_an_fp8_kv_cache(tmp_path):
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    pipeline_config = pipeline(tmp_path, 1, kv_cache_format="float8_e4m3fn")
    trace(pipeline_config, gpu="sm_100a")
    with virtual_gpus("sm_90a"), pytest.raises(UserError, match=r"this GPU is sm_90a"):
        MistralConfig.initialize(pipeline_config)


def test_heads_are_copied_beside_each_other(tmp_path):
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    weights = load_safetensors(pipeline(tmp_path, 4))
    want = make_tensors(WIDE)
    for name in ("k_proj", "v_proj"):
        name = f"layers.1.self_attn.{name}.weight"
        raw = weights[name].to_buffer().view(DType.uint16).to_numpy()
        found = raw.view(ml_dtypes.bfloat16).reshape(4, 64, -1)
        heads = want["model." + name].astype(ml_dtypes.bfloat16).reshape(2, 64, -1)
        for i in range(4):
            assert np.array_equal(found[i], heads[i // 2])


def test_scales_of_channels_are_copied_with_their_heads(tmp_path):
    write_quantized(tmp_path, LAYOUTS["channel"])
    flags = {"quantization_encoding": "float8_e4m3fn"}
    once, twice = (
        load_safetensors(pipeline(tmp_path, devices, **flags))[
            "layers.0.self_attn.v_proj.weight_scale"
        ]
        .to_buffer()
        .to_numpy()
        for devices in (2, 4)
    )
    assert np.array_equal(twice, repeat_heads(once, 2, 2))


def test_a_block_over_two_heads_cannot_be_copied(tmp_path):
    config = CONFIG | {"head_dim": 64, "num_attention_heads": 8}
    write_quantized(tmp_path, LAYOUTS["block"], config)
    flags = {"quantization_encoding": "float8_e4m3fn"}
    with pytest.raises(UserError, match="1 rows of scales for 2 key-value heads"):
        load_safetensors(pipeline(tmp_path, 4, **flags))


def test_devices_do_not_share_a_block(tmp_path):
    write_quantized(tmp_path, LAYOUTS["block"])
    flags = {"quantization_encoding": "float8_e4m3fn"}
    with pytest.raises(UserError, match="MLP width 384 on 2 devices"):
        trace(pipeline(tmp_path, 2, **flags), gpu="sm_100a")


def test_devices_do_not_share_a_group_of_scales(tmp_path):
    config = CONFIG | {"intermediate_size": 448}
    write_quantized(tmp_path, LAYOUTS["nvfp4"], config)
    flags = {"quantization_encoding": "float4_e2m1fnx2"}
    trace(pipeline(tmp_path, 1, **flags), gpu="sm_100a")
    with pytest.raises(UserError, match=r"MLP width 448 on 2 devices .* of 64"):
        trace(pipeline(tmp_path, 2, **flags), gpu="sm_100a")


@pytest.mark.parametrize(
    ("devices", "replicas", "named"),
    [
        (3, 1, "3 must divide 8"),
        (2, 3, "2 devices do not divide"),
        (4, 3, "--data-parallel-degree to a divisor of 4"),
    ],
)
def test_what_does_not_divide_is_refused(tmp_path, devices, replicas, named):
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    with pytest.raises(ValueError, match=named):
        MistralConfig.initialize(
            pipeline(tmp_path, devices, data_parallel_degree=replicas)
        )


def test_the_inputs_are_the_graphs(tmp_path):
    """Splits only with replicas, signals only where several devices share one."""
    write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    one = trace(pipeline(tmp_path, 1))
    two = trace(pipeline(tmp_path, 2, data_parallel_degree=2))
    four = trace(pipeline(tmp_path, 4, data_parallel_degree=2))
    kv = len(one) - 3
    assert len(two) == 3 + 2 + 2 * kv
    assert len(four) - len(two) > 4  # four signals, and the KV of two more devices
    some = Buffer.from_numpy(np.zeros(1, np.int64))
    with_replicas = {"data_parallel_splits": some, "host_row_offsets": some}
    inputs = MistralInputs(some, some, [], some, **with_replicas)
    without = replace(inputs, data_parallel_splits=None, host_row_offsets=None)
    assert len(inputs.buffers) == len(without.buffers) + 2


def test_the_buffers_are_the_leaves_of_maxs_tree():
    made = (Buffer.from_numpy(np.zeros(1, np.int64)) for _ in iter(int, 1))
    names = [field.name for field in fields(KVCacheInputsPerDevice)]
    plain, scaled = (
        KVCacheInputsPerDevice(**{name: next(made) for name in names[:count]})
        for count in (6, 9)
    )
    signals = [next(made), next(made)]
    # A plain dict's keys are sorted.
    for kv in ((plain,), {"sliding": (plain, scaled), "full": (scaled,)}, None):
        inputs = MistralInputs(
            next(made), next(made), signals, next(made), kv_cache_inputs=kv
        )
        batch = {"tokens": inputs.tokens, "row_offsets": inputs.input_row_offsets}
        batch["return_n_logits"] = inputs.return_n_logits
        leaves = tree.leaves(in_order(batch, signals, kv))
        assert list(map(id, inputs.buffers)) == list(map(id, leaves))


def test_only_one_of_the_inputs_of_replicas_is_refused():
    some = Buffer.from_numpy(np.zeros(1, np.int64))
    for name in ("data_parallel_splits", "host_row_offsets"):
        with pytest.raises(UserError, match="only one of"):
            MistralInputs(some, some, [], some, **{name: some})


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_get_the_offsets_on_the_host(monkeypatch, replicas):
    tokens, rows, host_rows = (
        Buffer.from_numpy(np.arange(size, dtype=np.uint32)) for size in (7, 3, 3)
    )
    monkeypatch.setattr(
        Llama3BatchProcessorBase,
        "_stage_ragged_token_inputs",
        lambda self, batch: (tokens, rows, host_rows),
    )
    model = SimpleNamespace(data_parallel_degree=replicas, device_specs=[0] * replicas)
    processor = MistralBatchProcessor.__new__(MistralBatchProcessor)
    processor.runtime = SimpleNamespace(
        pipeline_config=SimpleNamespace(model=model), devices=[CPU()], signal_buffers=[]
    )
    processor._input_row_offsets_prealloc = rows
    inputs = processor.prepare_initial_token_inputs(
        [[None] * (2 // replicas)] * replicas
    )
    assert inputs.host_row_offsets is (host_rows if replicas == 2 else None)
    if replicas == 2:
        # MAX prepares them for one replica's requests.
        processor._input_row_offsets_prealloc = rows[:2]
    following = processor.prepare_next_token_inputs(tokens[:2], inputs)
    assert following.input_row_offsets.to_numpy().tolist() == [0, 1, 2]
    if replicas == 2:
        assert following.host_row_offsets.to_numpy().tolist() == [0, 1, 2]
    else:
        assert following.host_row_offsets is None
