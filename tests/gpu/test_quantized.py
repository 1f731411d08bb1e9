"""The products of a block in each quantized layout, by what the weights are worth."""

import numpy as np
import pytest
from max.driver import Accelerator
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import Graph, TensorType

from max_mistral.gpu import gpu_architecture
from max_mistral.gpu_matmul.matmuls import use_right_matmul
from tests.gpu.test_matmul import random, to_array, to_buffer
from tests.harness import build, relative_error
from workbench.quantized import (
    CONFIG,
    LAYOUTS,
    NVFP4_LAYOUTS,
    pipeline,
    write_quantized,
)

# How far rounding moves what goes into a product, relative to it. The weights'
# rounding is in what they are worth.
E4M3, E2M1, BFLOAT16 = 2.0**-4, 2.0**-2, 2.0**-8
UNITS = {
    "tensor": E4M3,
    "channel": E4M3,
    "block": E4M3,
    # 16 numbers in e2m1 under a scale in e4m3.
    "sixteen": E2M1 + E4M3,
    # Activations stay bfloat16, and dequantized weights become it.
    "group": 2 * BFLOAT16,
}
# Of each tile of our kernels; see gpu_kernels/tiles.mojo.
ROWS = (1, 7, 64, 200)


@pytest.fixture
def session():
    """One for each test, for nothing takes its matmul back."""
    return InferenceSession(devices=[Accelerator()])


def compile_block(session, module, pipeline_config):
    """Returns a model of the first block: of x its Q, K, V and MLP, of y ``o_proj``.

    On the matmul that ``max serve`` would run.
    """
    config, block = module.config, module.layers[0]
    device = config.devices[0]
    queries = config.num_attention_heads * config.head_dim
    types = [
        TensorType(DType.bfloat16, ["rows", width], device=device)
        for width in (config.hidden_size, queries)
    ]
    libraries = use_right_matmul(config, pipeline_config, session, session.devices)
    with Graph("block", input_types=types, custom_extensions=libraries) as graph:
        x, y = (value.tensor for value in graph.inputs)
        attention = block.self_attn
        graph.output(attention.qkv_proj(x), attention.o_proj(y), block.mlp(x))
    return session.load(graph, weights_registry=module.state_dict())


def products(x, y, worth):
    """Returns the same by the weights' worth, in float32."""

    def project(values, name):
        return values @ worth[f"model.layers.0.{name}_proj.weight"].T

    gate, up = project(x, "mlp.gate"), project(x, "mlp.up")
    return (
        np.concatenate([project(x, f"self_attn.{name}") for name in "qkv"], axis=1),
        project(y, "self_attn.o"),
        project(gate / (1 + np.exp(-gate)) * up, "mlp.down"),
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_products_of_a_block(tmp_path, session, name):
    worth = write_quantized(tmp_path, LAYOUTS[name])
    if name in NVFP4_LAYOUTS and not gpu_architecture().startswith("sm_10"):
        pytest.skip("NVFP4 needs a Blackwell")
    pipeline_config = pipeline(tmp_path)
    model = compile_block(session, build(pipeline_config), pipeline_config)
    unit = UNITS[LAYOUTS[name].scales]
    # The errors of an MLP's three products are independent.
    allowed = {"qkv": unit, "o": unit, "mlp": np.sqrt(3) * unit}
    rng = np.random.default_rng(0)
    for rows in ROWS:
        x = random(rng, rows, CONFIG["hidden_size"])
        y = random(rng, rows, CONFIG["num_attention_heads"] * CONFIG["head_dim"])
        found = model.execute(
            *(to_buffer(values).to(session.devices[0]) for values in (x, y))
        )
        for (part, limit), got, want in zip(
            allowed.items(), found, products(x, y, worth), strict=True
        ):
            # A NaN is not below anything.
            assert relative_error(to_array(got), want) < limit, (part, rows)
