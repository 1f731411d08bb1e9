"""What weights take in memory, where that is not what they take in their files."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from max.driver import DeviceSpec
from transformers import AutoConfig

from max_mistral import MistralConfig, kernels
from max_mistral.command import memory
from max_mistral.command.checkpoint import Checkpoint
from max_mistral.errors import UserError
from max_mistral.memory_planner import MistralMemoryPlanner
from max_mistral.weights import kept
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.kept import KeptMatrices
from max_mistral.weights.memory import bytes_stored
from max_mistral.weights.names import expected_tensors
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

# 300 tokens are no whole panels of 16 rows.
CONFIG = BASE | {
    **{"hidden_size": 256, "intermediate_size": 512, "vocab_size": 300},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64},
}
# Types, and how many times their size they take for the kernels.
GROWS = {"IQ1_S": 10.2, "IQ1_M": 9.1, "MXFP4": 3.8, "IQ2_XXS": 1.7, "Q4_K": 1, "F16": 1}


@pytest.fixture(params=GROWS)
def file(request, tmp_path):
    """A GGUF file whose matrices are of one type, and the type."""
    path = tmp_path / "m.gguf"
    kind = GGMLQuantizationType[request.param]
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "llama")
    tensors = expected_tensors(AutoConfig.for_model(**CONFIG), "gguf", tied=False)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 1:
            writer.add_tensor(name, np.ones(tensor.shape, np.float32))
            continue
        rows, width = tensor.shape
        # As a scale of any type it is finite.
        blocks = np.full((rows, width // columns * size), 0x20, np.uint8)
        blocks = blocks if kind.name != "F16" else blocks.view(np.float16)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, request.param


def test_a_gguf_file_is_as_large_as_the_kernels_take_it(file):
    path, kind = file
    found = bytes_stored(path, packed=True)
    config = AutoConfig.for_model(**CONFIG)
    weights = GGUFCheckpoint(path).weights(config, packed=True)
    loaded = sum(np.from_dlpack(weight.data).nbytes for _, weight in weights)
    assert found == loaded
    size = path.stat().st_size
    assert bytes_stored(path, packed=False) == size
    # Some rows of zeros more, and norms that do not grow.
    assert found / size == pytest.approx(GROWS[kind], rel=0.06)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_memory_is_planned_by_it(file, tmp_path, monkeypatch, mode):
    """By the command and by MAX's planner, on a CPU."""
    path, _ = file
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    assert kernels.mode() == mode
    folder = write_checkpoint(tmp_path / "hf", CONFIG)
    config = AutoConfig.from_pretrained(folder)
    checkpoint = Checkpoint(path, (path,), prepare=True)
    cpu = [DeviceSpec.cpu()]
    weights = memory.fit_context(checkpoint, config, cpu, None).weights
    pipeline = make_pipeline_config(folder, weight_path=[path])
    planner = MistralMemoryPlanner(MistralConfig.initialize(pipeline))
    assert planner.estimate_weights_size(pipeline) == weights
    if mode == "on":
        assert weights == bytes_stored(path, packed=True)
    else:
        float32 = (folder / "model.safetensors").stat().st_size
        assert 0.95 * float32 < weights < float32


def test_room_on_the_disk_is_that_of_what_is_packed(file, tmp_path, monkeypatch):
    path, _ = file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_LEAST_BYTES", 0)
    for more in (-1, 0):
        free = kept._ROOM * bytes_stored(path, packed=True) + more
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda _, usage=usage: usage)
        found = KeptMatrices.of([path])._folder
        assert (found is None) == (more < 0)


def test_a_file_that_is_cut_is_refused(file):
    path, _ = file
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a complete GGUF file"):
        bytes_stored(path, packed=True)
