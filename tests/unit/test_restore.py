"""FP8 on a CPU: weights restored to bfloat16."""

import math

import ml_dtypes
import numpy as np
import pytest
from max.driver import DeviceSpec
from max.dtype import DType
from safetensors.numpy import save_file

from max_mistral.errors import UserError
from max_mistral.formats.restore import fp8_values, restore, to_bfloat16
from max_mistral.memory_planner import MistralMemoryPlanner
from max_mistral.model_config import MistralConfig
from tests.harness import load_safetensors, virtual_gpus
from workbench.checkpoints import write_checkpoint
from workbench.quantized import (
    CONFIG,
    FP8_LAYOUTS,
    LAYOUTS,
    pipeline,
    write_quantized,
)

CPU = {"device_specs": [DeviceSpec.cpu()], "quantization_encoding": "float32"}


def on_cpu(folder):
    return pipeline(folder, weight_path=[folder / "model.safetensors"], **CPU)


def test_every_code_of_fp8():
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(fp8_values(), wanted)


def test_rounding_to_bfloat16():
    bits = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32)
    ties = np.arange(0, 2**32, 2**15, dtype=np.uint32)
    values = np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = values.astype(ml_dtypes.bfloat16)
    found = to_bfloat16(values).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    known = ~np.isnan(wanted)
    assert (found.view(np.uint16) == wanted.view(np.uint16))[known].all()


def test_blocks_that_the_edges_cut():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 127, (200, 130), dtype=np.uint8)
    scales = rng.random((2, 2), np.float32)
    wide = scales.repeat(128, 0).repeat(128, 1)[:200, :130]
    wanted = (fp8_values()[codes] * wide).astype(ml_dtypes.bfloat16)
    found = restore(codes, scales, 128, 128).view(ml_dtypes.bfloat16)
    assert (found == wanted).all()


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("name", FP8_LAYOUTS)
def test_a_cpu_gets_the_weights_of_the_bfloat16_checkpoint(tmp_path, name, mode):
    worth = write_quantized(tmp_path / "fp8", LAYOUTS[name])
    plain = write_checkpoint(tmp_path / "plain", CONFIG)
    weights = {n: t.astype(ml_dtypes.bfloat16) for n, t in worth.items()}
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    found, wanted = (
        load_safetensors(on_cpu(tmp_path / each), kernel_mode=mode)
        for each in ("fp8", "plain")
    )
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert type(found[key]) is type(weight)
        assert found[key].dtype == weight.dtype
        left, right = (w.to_buffer().to_numpy() for w in (found[key], weight))
        np.testing.assert_array_equal(left, right, err_msg=key)
    assert MistralConfig.initialize(on_cpu(tmp_path / "fp8")).quantization is None


UP = "model.layers.1.mlp.up_proj."


def test_a_code_that_is_no_number_is_refused(tmp_path):
    def spoil(tensors):
        tensors[UP + "weight"].view(np.uint8)[3, 7] = 0x7F

    write_quantized(tmp_path, LAYOUTS["channel"], edit=spoil)
    with pytest.raises(UserError, match=r"up_proj.* NaN or infinite, at row 3, col"):
        load_safetensors(on_cpu(tmp_path))


def test_a_scale_beyond_bfloat16_is_refused(tmp_path):
    def spoil(tensors):
        tensors[UP + "weight_scale"].fill(1e38)

    write_quantized(tmp_path, LAYOUTS["autofp8_dynamic"], edit=spoil)
    with pytest.raises(UserError, match=r"up_proj\.weight .* NaN or infinite"):
        load_safetensors(on_cpu(tmp_path))


@pytest.mark.parametrize(
    ("gpu", "kept", "restored"),
    [
        ("sm_80", None, True),
        ("sm_89", None, True),
        ("sm_90a", None, True),
        ("sm_90a", "keep", False),
        ("sm_100a", None, False),
        ("gfx950", None, False),
    ],
)
def test_gpus_without_fast_products_get_bfloat16(
    tmp_path, monkeypatch, gpu, kept, restored
):
    if kept:
        monkeypatch.setenv("MAX_MISTRAL_FP8", kept)
    write_quantized(tmp_path, LAYOUTS["static"])
    pipeline_config = pipeline(tmp_path)
    with virtual_gpus(gpu):
        config = MistralConfig.initialize(pipeline_config)
        weights = load_safetensors(pipeline_config)
    assert config.restored is restored
    assert (config.quantization is None) is restored
    assert config.dtype == DType.bfloat16
    dtype = DType.bfloat16 if restored else DType.float8_e4m3fn
    assert weights["layers.1.mlp.up_proj.weight"].dtype == dtype
    # The memory that MAX reserves for the weights: what is in bfloat16 stays.
    size = (tmp_path / "model.safetensors").stat().st_size
    planned = MistralMemoryPlanner(config).estimate_weights_size(pipeline_config)
    loaded = sum(
        math.prod(weight.shape.static_dims) * weight.dtype.size_in_bytes
        for weight in weights.values()
    )
    assert loaded <= planned <= 1.2 * loaded if restored else planned == size


def test_an_unknown_value_of_the_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_MISTRAL_FP8", "fast")
    write_quantized(tmp_path, LAYOUTS["static"])
    with virtual_gpus("sm_90a"), pytest.raises(UserError, match=r"'fast'.* or keep"):
        MistralConfig.initialize(pipeline(tmp_path))


def test_without_the_flag_it_is_named(tmp_path):
    write_quantized(tmp_path, LAYOUTS["static"])
    flags = CPU | {"quantization_encoding": "bfloat16"}
    with pytest.raises(Exception, match="float32"):
        MistralConfig.initialize(pipeline(tmp_path, **flags))
