"""The products of a block in each quantized layout, by what the weights are worth.

In a dry run (``workbench/check_device.py``) a CPU multiplies what it restores to
bfloat16. What it cannot multiply is traced for a GPU that is not there, and NumPy
multiplies: then all but the kernels has run.
"""

import contextlib

import numpy as np
import pytest
from max.driver import CPU, Accelerator
from max.engine import InferenceSession
from max.graph import Graph, TensorType

from max_mistral import switches
from max_mistral.formats.fp8 import keeps_fp8
from max_mistral.gpu import gpu_architecture
from max_mistral.gpu_matmul.matmuls import use_right_matmul
from tests.gpu.test_matmul import random, to_array, to_buffer
from tests.harness import build, relative_error, virtual_gpus
from workbench import check_device
from workbench.quantized import (
    CONFIG,
    FP8_LAYOUTS,
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
# So do those that are restored: an FP8 product is not among them.
RESTORED = 2 * BFLOAT16
# Of each tile of our kernels; see gpu_kernels/tiles.mojo.
ROWS = (1, 7, 64, 200)


def compile_block(session, module, pipeline_config):
    """Returns a model of the first block: of x its Q, K, V and MLP, of y ``o_proj``.

    On the matmul that ``max serve`` would run.
    """
    config, block = module.config, module.layers[0]
    device = config.devices[0]
    queries = config.num_attention_heads * config.head_dim
    types = [
        TensorType(config.dtype, ["rows", width], device=device)
        for width in (config.hidden_size, queries)
    ]
    # Not all of the session's, among which is the host.
    gpus = session.devices[:1]
    libraries = use_right_matmul(config, pipeline_config, session, gpus)
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


def limits(layout, is_restored):
    """Returns by how much each product's result may be off, relative to it."""
    unit = RESTORED if is_restored else UNITS[layout.scales]
    # The errors of an MLP's three products are independent.
    return {"qkv": unit, "o": unit, "mlp": np.sqrt(3) * unit}


def operands(rows):
    """Returns an x and a y of :func:`compile_block`, in float32."""
    rng = np.random.default_rng(rows)
    widths = CONFIG["hidden_size"], CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    return [random(rng, rows, width) for width in widths]


class InNumPy:
    """A session for a GPU that is not there: its models are NumPy's products."""

    def __init__(self, worth):
        self.devices, self.worth = [Accelerator(), CPU()], worth

    def load(self, graph, weights_registry):
        # As much as can be seen of it: two operands, three results.
        assert (len(graph.inputs), len(graph.output_types)) == (2, 3)
        assert weights_registry
        return self

    def execute(self, x, y):
        found = products(to_array(x), to_array(y), self.worth)
        return [to_buffer(values) for values in found]


def runs_on_a_cpu(name):
    """Whether there is more than NumPy to multiply by, without a GPU."""
    return name in FP8_LAYOUTS and not keeps_fp8()


def is_restored(name):
    """Whether a layout is to run in bfloat16: FP8 is, unless it is kept.

    On a CPU, and on all of NVIDIA's GPUs but those that have fast products of it.
    """
    gpu = "sm_90" if check_device.is_dry() else gpu_architecture()
    return runs_on_a_cpu(name) and gpu.startswith("sm_") and gpu[:5] != "sm_10"


def lacks_blackwell(name):
    """Whether this GPU cannot run a layout that only Blackwell runs."""
    if name not in NVFP4_LAYOUTS or check_device.is_dry():
        return False
    return not gpu_architecture().startswith("sm_10")


@contextlib.contextmanager
def prepared(name, worth, monkeypatch):
    """Yields a session, and the device of its operands.

    A session for each test, for nothing takes its matmul back.
    """
    if not check_device.is_dry():
        device = check_device.device()
        yield InferenceSession(devices=[device]), device
    elif runs_on_a_cpu(name):
        # MAX's own operations, which a GPU runs too, not our kernels for a CPU.
        monkeypatch.setenv(switches.KERNELS, "off")
        yield InferenceSession(devices=[CPU()]), CPU()
    else:
        with virtual_gpus("sm_100a" if name in NVFP4_LAYOUTS else "sm_90a"):
            yield InNumPy(worth), CPU()


def config_of(folder, name):
    """Returns the checkpoint's config on the device that multiplies it."""
    if check_device.is_dry() and runs_on_a_cpu(name):
        weights = [folder / "model.safetensors"]
        return pipeline(folder, weight_path=weights, **check_device.flags("bfloat16"))
    return pipeline(folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_products_of_a_block(tmp_path, monkeypatch, name):
    worth = write_quantized(tmp_path, LAYOUTS[name])
    if lacks_blackwell(name):
        pytest.skip("NVFP4 needs a Blackwell")
    with prepared(name, worth, monkeypatch) as (session, device):
        pipeline_config = config_of(tmp_path, name)
        module = build(pipeline_config)
        model = compile_block(session, module, pipeline_config)
        # Else FP8 that is kept unasked would be held to what FP8 may be off by.
        assert module.config.restored == is_restored(name)
        allowed = limits(LAYOUTS[name], module.config.restored)
        for rows in ROWS:
            x, y = operands(rows)
            found = model.execute(
                *(to_buffer(v, module.config.dtype).to(device) for v in (x, y))
            )
            for (part, limit), got, want in zip(
                allowed.items(), found, products(x, y, worth), strict=True
            ):
                # A NaN is not below anything.
                assert relative_error(to_array(got), want) < limit, (part, rows)
    if isinstance(session, InNumPy):
        pytest.skip(f"a CPU has no product of {name}: NumPy's ran, of a traced graph")
