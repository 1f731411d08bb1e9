"""GPTQ's Q, K and V, and gate and up, as one product each."""

import numpy as np
import pytest
from max import tree
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph
from max.graph.weights import WeightData

from max_mistral.formats.gptq import GPTQ
from max_mistral.formats.gptq_stacked import (
    StackedGPTQMLP,
    StackedGPTQQKV,
    stacked_weight,
)
from tests.harness import build, virtual_gpus
from workbench.quantized import LAYOUTS, pipeline, write_quantized


def stacked(folder):
    """Which parts of each block run as one product; the graph is traced too."""
    with virtual_gpus("sm_90a"):
        graph = build(pipeline(folder))
        graph.trace(*tree.leaves(graph.input_tree()))
    return [
        (
            isinstance(block.self_attn.qkv_proj, StackedGPTQQKV),
            isinstance(block.mlp, StackedGPTQMLP),
        )
        for block in graph.layers
    ]


@pytest.mark.parametrize("name", ["gptq", "gptq_desc_act"])
def test_both_parts_of_every_block(tmp_path, name):
    write_quantized(tmp_path, LAYOUTS[name])
    assert stacked(tmp_path) == [(True, True)] * 2


@pytest.mark.parametrize(
    ("projection", "found"),
    [
        ("self_attn.v_proj", (False, True)),
        ("mlp.up_proj", (True, False)),
        ("mlp.down_proj", (True, True)),
    ],
)
def test_one_product_needs_one_order_of_columns(tmp_path, projection, found):
    name = f"model.layers.1.{projection}.g_idx"

    def edit(stored):
        stored[name] = np.ascontiguousarray(stored[name][::-1])

    write_quantized(tmp_path, LAYOUTS["gptq_desc_act"], edit=edit)
    assert stacked(tmp_path) == [(True, True), found]


@pytest.mark.parametrize(("wide", "is_stacked"), [(14336, False), (11008, True)])
def test_gate_and_up_of_a_7b_keep_their_tuned_kernel(wide, is_stacked):
    made_of = GPTQ(desc_act=False).linears("mlp", 0, DType.bfloat16)
    mlp = made_of.mlp(4096, wide, [DeviceRef.GPU()])
    assert isinstance(mlp, StackedGPTQMLP) == is_stacked


def test_the_stacked_weight_is_one_of_all_their_columns():
    rng = np.random.default_rng(0)
    in_dim, widths = 256, {"q_proj": 128, "k_proj": 64, "v_proj": 32}
    made_of = GPTQ(desc_act=False).linears("self_attn", 0, DType.bfloat16)
    qkv = made_of.qkv(in_dim, widths, DeviceRef.CPU())
    parts = {
        "qweight": [
            rng.integers(0, 2**31, (in_dim // 8, wide), np.int32)
            for wide in widths.values()
        ],
        "scales": [
            rng.random((in_dim // 128, wide)).astype(np.float16)
            for wide in widths.values()
        ],
    }
    names = [f"{name}.{part}" for part in parts for name in widths]
    arrays = [array for part in parts.values() for array in part]
    qkv.load_state_dict(
        {
            name: WeightData.from_numpy(array, name)
            for name, array in zip(names, arrays, strict=True)
        }
    )
    with Graph("stacked") as graph:
        graph.output(stacked_weight(qkv.projections))
    session = InferenceSession(devices=[CPU()])
    model = session.load(graph, weights_registry=qkv.state_dict())
    # As the kernel reads it: the bytes of the rows, in as many columns.
    want = [
        np.concatenate(part, axis=1).view(np.uint8).reshape(-1, sum(widths.values()))
        for part in parts.values()
    ]
    assert np.array_equal(model.execute()[0].to_numpy(), np.concatenate(want))
