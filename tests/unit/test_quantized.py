"""Quantized checkpoints in each published layout: names, scales, shapes, values."""

import json

import ml_dtypes
import numpy as np
import pytest
from max import tree
from max.driver import DeviceSpec
from max.dtype import DType

from max_mistral.formats.fp8 import FP8
from max_mistral.formats.scaled import QuantizedLayers
from tests.harness import build, load_safetensors, virtual_gpus
from tests.quantized_reference import GOLDEN, NAMES, digest
from workbench.quantized import (
    CONFIG,
    FP8_LAYOUTS,
    GPTQ_LAYOUTS,
    LAYOUTS,
    NVFP4_LAYOUTS,
    pipeline,
    write_quantized,
)
from workbench.quantizers import FP4
from workbench.quantizers import FP8 as E4M3

GPU = DeviceSpec.accelerator(0)
# Two devices have whole blocks of 128.
WIDE = CONFIG | {"intermediate_size": 512}


def load(folder, **flags):
    return load_safetensors(pipeline(folder, **flags))


# NumPy has no such dtypes of its own.
VIEWS = {
    DType.float8_e4m3fn: (DType.uint8, E4M3),
    DType.bfloat16: (DType.uint16, ml_dtypes.bfloat16),
}


def array(weight):
    """A weight in float32, whatever its dtype."""
    raw = weight.to_buffer()
    if weight.dtype in VIEWS:
        alike, dtype = VIEWS[weight.dtype]
        return raw.view(alike).to_numpy().view(dtype).astype(np.float32)
    return raw.to_numpy().astype(np.float32)


def dequantize(weights, name):
    """What the graph computes with: a projection or any other weight."""
    stem = name.removesuffix("weight")
    if stem + "qweight" in weights:
        packed = weights[stem + "qweight"].to_buffer().to_numpy().view(np.uint32)
        shifts = (4 * np.arange(8, dtype=np.uint32))[None, :, None]
        codes = (packed[:, None] >> shifts & 15).reshape(-1, packed.shape[1])
        scales = array(weights[stem + "scales"])
        order = np.arange(len(codes))
        if stem + "perm_idx" in weights:
            order = weights[stem + "perm_idx"].to_buffer().to_numpy()
        values = np.empty(codes.shape, np.float32)
        # MAX multiplies x[perm_idx] with sorted rows, 128 to a scale.
        values[order] = (codes[order] - 8.0) * scales.repeat(128, axis=0)
        return values.T
    values = array(weights[name])
    if stem + "weight_scale" not in weights:
        return values
    scale = array(weights[stem + "weight_scale"])
    if stem + "weight_scale_2" in weights:
        codes = weights[name].to_buffer().to_numpy()
        pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        values = pairs.view(FP4).astype(np.float32) * scale.repeat(16, axis=1)
        return values * array(weights[stem + "weight_scale_2"])
    if scale.ndim == 2 and scale.shape[1] * 128 == values.shape[1]:
        scale = scale.repeat(128, axis=0).repeat(128, axis=1)
    return values * scale


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_weights_are_worth_what_was_written(tmp_path, name):
    worth = write_quantized(tmp_path, LAYOUTS[name])
    weights = load(tmp_path)
    for key, want in worth.items():
        found = dequantize(weights, key.removeprefix("model."))
        assert np.array_equal(found, want), key


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_worth_what_hugging_face_says(tmp_path, name):
    write_quantized(tmp_path, LAYOUTS[name])
    weights = load(tmp_path)
    for key, want in json.loads(GOLDEN.read_text())[name].items():
        assert digest(dequantize(weights, key.removeprefix("model."))) == want, key


def trace(pipeline_config):
    """Traces the graph for a GPU; returns the config with what the weights say."""
    with virtual_gpus("sm_100a"):
        graph = build(pipeline_config)
        graph.trace(*tree.leaves(graph.input_tree()))
    return graph.config


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_graph_takes_them(tmp_path, name):
    """Names, dtypes and shapes are the graph's, and it traces for a GPU."""
    write_quantized(tmp_path, LAYOUTS[name])
    config = trace(pipeline(tmp_path))
    if name in NVFP4_LAYOUTS:
        assert config.quantization.separate_qkv != LAYOUTS[name].shared


@pytest.mark.parametrize("name", FP8_LAYOUTS + NVFP4_LAYOUTS)
def test_the_scales_are_the_same_where_gpus_are_virtual(tmp_path, name):
    """There MAX casts nothing, but the graph depends on which scales are alike."""
    write_quantized(tmp_path, LAYOUTS[name])
    weights = load(tmp_path)
    with virtual_gpus("sm_100a"):
        alike = load(tmp_path)
    scales = [key for key in weights if "_scale" in key]
    assert scales
    for key in scales:
        assert np.array_equal(array(alike[key]), array(weights[key])), key


@pytest.mark.parametrize("name", GPTQ_LAYOUTS)
def test_gptq_of_zeros_is_taken_where_gpus_are_virtual(tmp_path, name):
    """max warm-cache --header-only-weights has no other numbers."""

    def clear(tensors):
        for tensor in tensors.values():
            tensor.fill(0)

    write_quantized(tmp_path, LAYOUTS[name], edit=clear)
    with virtual_gpus("sm_90a"):
        assert load(tmp_path)


@pytest.mark.parametrize("name", FP8_LAYOUTS + NVFP4_LAYOUTS)
def test_layers_left_in_bfloat16(tmp_path, name):
    worth = write_quantized(
        tmp_path, LAYOUTS[name], dense=lambda n: "layers.0.mlp" in n
    )
    weights = load(tmp_path)
    layers = QuantizedLayers.of(weights)
    assert (layers.self_attn, layers.mlp) == ({0, 1}, {1})
    for key, want in worth.items():
        assert np.array_equal(dequantize(weights, key.removeprefix("model.")), want)


@pytest.mark.parametrize("name", NVFP4_LAYOUTS)
def test_the_scales_of_activations_in_nvfp4(tmp_path, name):
    """Each its own, and the inverse of what compressed-tensors stores."""
    layout, values = LAYOUTS[name], {}

    def number(tensors):
        for i, key in enumerate(k for k in tensors if k.endswith(layout.input_scale)):
            values[key.removeprefix("model.").rpartition(".")[0]] = 2.0**-i
            tensors[key].fill(2.0**i if layout.divisors else 2.0**-i)

    write_quantized(tmp_path, layout, edit=number)
    weights = load(tmp_path)
    assert len(values) == 14
    for stem, value in values.items():
        assert array(weights[stem + ".input_scale"]) == value


@pytest.mark.parametrize("role", ["weight_scale_2", "input_scale"])
@pytest.mark.parametrize("devices", [1, 2])
def test_q_k_and_v_with_scales_of_their_own(tmp_path, role, devices):
    """They run one by one, and so do gate and up; else they are one product."""

    def edit(changed):
        def change(tensors):
            for name in [n for n in tensors if n.endswith(("weight_scale_2", role))]:
                tensors[name] = np.array(1 + (changed in name), np.float32)

        return change

    gpus = [DeviceSpec.accelerator(i) for i in range(devices)]
    for changed in ("none", "1.self_attn.v_proj", "1.mlp.gate_proj"):
        write_quantized(tmp_path, LAYOUTS["modelopt_nvfp4"], WIDE, edit=edit(changed))
        config = trace(pipeline(tmp_path, device_specs=gpus))
        assert config.quantization.separate_qkv == ("v_proj" in changed)
        assert config.quantization.layers.fuse_mlp == ("gate" not in changed)


def test_the_scales_of_a_kv_cache_are_dropped(tmp_path):
    names = ["model.layers.0.self_attn.k_proj.output_scale"]
    names += [f"model.layers.1.self_attn.{x}_scale" for x in "kv"]
    ones = dict.fromkeys(names, np.ones(1, np.float32))
    write_quantized(tmp_path, LAYOUTS["autofp8"], edit=lambda t: t.update(ones))
    assert not any("output_scale" in name for name in load(tmp_path))


@pytest.mark.parametrize(
    ("gpu", "scales", "slow"),
    [
        *[(gpu, "block", True) for gpu in ("sm_90a", "sm_89", "sm_120a")],
        *[(gpu, "tensor", False) for gpu in ("sm_90a", "sm_120a")],
        ("sm_90a", "channel", False),
        *[("sm_89", scales, True) for scales in ("tensor", "channel")],
        ("sm_100a", "block", False),
        ("sm_100a", "tensor", False),
        ("gfx950", "block", False),
    ],
)
def test_slow_products_are_said(monkeypatch, caplog, gpu, scales, slow):
    monkeypatch.setattr("max_mistral.gpu.accelerator_count", lambda: 1)
    monkeypatch.setattr("max_mistral.gpu.accelerator_architecture_name", lambda: gpu)
    every = QuantizedLayers(frozenset({0}), frozenset({0}))
    FP8(scales, static=False).finalize_layers(every, {}, {"hidden": 256}, 1)
    assert ("without tensor cores" in caplog.text) is slow
    assert (gpu in caplog.text) is slow
