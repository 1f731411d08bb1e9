"""NaN and infinity in weights and scales are found at load, and named."""

import re

import ml_dtypes
import numpy as np
import pytest
from gguf.quants import dequantize
from transformers import MistralConfig

from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding
from max_mistral.prepare.gguf_config import read_config
from max_mistral.weights.finite import check_bytes
from max_mistral.weights.gguf_file import GGUFCheckpoint
from tests.harness import load_safetensors
from tests.unit.test_gguf import write_gguf
from tests.unit.test_kernels import block_type
from workbench.checkpoints import BASE, DTYPES, make_tensors, write_checkpoint
from workbench.quantized import LAYOUTS, pipeline, write_quantized
from workbench.runner import make_pipeline_config

WRONG = [np.nan, -np.nan, np.inf, -np.inf]
FETCH = "The file is damaged: fetch it again"
TENSORS = {
    "model.norm.weight": "place 95",
    "model.embed_tokens.weight": "row 319, column 95",
    "model.layers.2.self_attn.k_proj.weight": "row 31, column 95",
    "lm_head.weight": "row 319, column 95",
}


def load(folder):
    # MAX would not look for float16 on a CPU by itself.
    paths = [folder / "model.safetensors"]
    return load_safetensors(make_pipeline_config(folder, weight_path=paths))


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TENSORS)
def test_in_safetensors(tmp_path, monkeypatch, name, dtype, mode):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    tensors = make_tensors(BASE)
    for value in WRONG:
        tensors[name].flat[-1] = value
        write_checkpoint(tmp_path, BASE, dtype=dtype, tensors=tensors)
        with pytest.raises(UserError) as error:
            load(tmp_path)
        assert f"{name} of {tmp_path} has a number that is NaN" in str(error.value)
        assert f"at {TENSORS[name]}. {FETCH}" in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_none_of_them(tmp_path, dtype):
    tensors = make_tensors(BASE)
    largest = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    for tensor in tensors.values():
        tensor.flat[0], tensor.flat[-1] = largest, -largest
    write_checkpoint(tmp_path, BASE, dtype=dtype, tensors=tensors)
    assert load(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ffn_down.weight"]
)
def test_in_gguf(tmp_path, name, packed):
    path = write_gguf(tmp_path / "m.gguf")
    checkpoint = GGUFCheckpoint(path)
    config = MistralConfig(**read_config(checkpoint))
    assert dict(checkpoint.weights(config, packed=packed))
    stored = checkpoint.tensors[name].stored
    for value in WRONG:
        with path.open("r+b") as file:
            file.seek(stored.offset + stored.size - 4)
            file.write(np.float32(value).tobytes())
        with pytest.raises(UserError, match=rf"{re.escape(name)} of .*NaN.*{FETCH}"):
            dict(checkpoint.weights(config, packed=packed))


QUANTIZED = [encoding for encoding in Encoding if not encoding.is_dense]


@pytest.mark.parametrize("encoding", QUANTIZED)
def test_in_the_scales_of_blocks(encoding):
    """Any bytes that dequantize to what is not finite are found, and no others."""
    rng = np.random.default_rng(int(encoding))
    width, size = encoding.block_columns, encoding.block_bytes
    rows, blocks, wrong = 3, 4, 0
    for _ in range(200):
        data = rng.integers(0, 256, (rows, blocks * size), np.uint8)
        with np.errstate(all="ignore"):
            values = dequantize(data, block_type(encoding))
        bad = ~np.isfinite(values).reshape(-1, width).all(1)
        if not bad.any():
            check_bytes("w", data, encoding, blocks * width, "m.gguf")
            continue
        wrong += 1
        with pytest.raises(UserError) as error:
            check_bytes("w", data, encoding, blocks * width, "m.gguf")
        found = re.search(r"the scales of row (\d+), column (\d+)\.", str(error.value))
        assert bad[int(found[1]) * blocks + int(found[2]) // width]
    assert 0 < wrong < 200


@pytest.mark.parametrize("chunk", [0, 2**18, 2**19 - 4, 2**19])
def test_at_the_edges_of_what_is_read_in_one_go(chunk):
    data = np.zeros(2**19 + 4, np.uint8)
    data[chunk : chunk + 4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    place = rf"row 0, column {chunk // 4}\."
    with pytest.raises(UserError, match=place):
        check_bytes("w", data, Encoding.F32, data.size // 4, "m")


Q = "model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("layout", "part", "value"),
    [
        ("channel", "weight", np.nan),
        ("nvfp4", "weight_scale", np.nan),
        ("gptq", "scales", np.inf),
        ("gptq", "scales", np.nan),
    ],
)
def test_in_formats_of_gpus(tmp_path, layout, part, value):
    def edit(tensors):
        tensors[Q + part].flat[-1] = value

    write_quantized(tmp_path, LAYOUTS[layout], edit=edit)
    with pytest.raises(UserError, match=rf"{re.escape(Q + part)} of .*NaN.*{FETCH}"):
        load_safetensors(pipeline(tmp_path))
