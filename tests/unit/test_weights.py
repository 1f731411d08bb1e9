"""Strict loading from safetensors: dtypes, shards, and what does not fit."""

import json

import numpy as np
import pytest
from max.dtype import DType

from max_mistral import kernels
from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.weights.packed import encodings_of
from max_mistral.weights.safetensors_file import stored_tensors
from tests.harness import load_safetensors
from workbench.checkpoints import BASE, DTYPES, make_tensors, write_checkpoint
from workbench.runner import make_pipeline_config

Q1 = "model.layers.1.self_attn.q_proj.weight"


def load(folder):
    paths = sorted(folder.glob("*.safetensors"))
    pipeline_config = make_pipeline_config(folder, weight_path=paths)
    return load_safetensors(pipeline_config)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_cpu_keeps_what_the_checkpoint_has(tmp_path, monkeypatch, dtype, shards):
    # Or else bfloat16 may be in 12 bits.
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: False)
    folder = write_checkpoint(tmp_path, BASE, dtype=dtype, shards=shards)
    weights = load(folder)
    encoding = {
        "float32": Encoding.F32,
        "float16": Encoding.F16,
        "bfloat16": Encoding.BF16,
    }[dtype]
    for name, tensor in make_tensors(BASE).items():
        weight = weights[name.removeprefix("model.")]
        cast = tensor.astype(DTYPES[dtype])
        if cast.ndim == 1:
            assert weight.dtype == DType.float32
            want = cast.astype(np.float32)
        else:
            assert weight.encoding == encoding
            want = pack(cast.view(np.uint8), encoding, cast.shape[1])
        assert np.array_equal(np.from_dlpack(weight.data), want), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_without_the_kernels_all_is_float32(tmp_path, monkeypatch, dtype, shards):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    folder = write_checkpoint(tmp_path, BASE, dtype=dtype, shards=shards)
    weights = load(folder)
    tensors = make_tensors(BASE)
    assert len(weights) == len(tensors)
    for name, tensor in tensors.items():
        weight = weights[name.removeprefix("model.")]
        assert weight.dtype == DType.float32
        # float32 holds every bfloat16 and float16 exactly.
        want = tensor.astype(DTYPES[dtype]).astype(np.float32)
        assert np.array_equal(np.from_dlpack(weight.data), want)


@pytest.mark.parametrize(
    ("dtype", "encoding"), [("bfloat16", Encoding.BF16), ("float16", Encoding.F16)]
)
def test_weights_of_two_bytes_stay_so(tmp_path, monkeypatch, dtype, encoding):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: False)
    weights = load(write_checkpoint(tmp_path, BASE, dtype=dtype))
    assert set(encodings_of(weights).values()) == {encoding}


def test_max_finds_the_shards_by_itself(tmp_path):
    folder = write_checkpoint(tmp_path, BASE, shards=3)
    paths = make_pipeline_config(folder).model.resolved_weight_paths()
    assert len(paths) == 3


def broken(tmp_path, change):
    tensors = make_tensors(BASE)
    change(tensors)
    return write_checkpoint(tmp_path, BASE, tensors=tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q1), f"{Q1} is missing"),
        (
            lambda t: t.update({Q1.replace("proj", "prj"): t.pop(Q1)}),
            f"did you mean {Q1}",
        ),
        (lambda t: t.update({Q1: t[Q1][:-1]}), "has shape \\[127, 96\\]"),
        (lambda t: t.update({"model.bonus": t[Q1]}), "model.bonus is unknown"),
        (
            lambda t: t.update({Q1: t[Q1].astype(np.int32)}),
            f"{Q1} of .* is int32",
        ),
    ],
    ids=["missing", "misspelt", "misshapen", "surplus", "integer"],
)
def test_what_does_not_fit_is_named(tmp_path, monkeypatch, change, message):
    monkeypatch.setitem(DTYPES, "float32", None)  # write the tensors as they are
    with pytest.raises(UserError, match=message):
        load(broken(tmp_path, change))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write_checkpoint(tmp_path, BASE) / "model.safetensors"
    whole = path.read_bytes()
    stored_tensors([path])
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        stored_tensors([path])


def test_loading_looks_for_truncation(tmp_path):
    path = write_checkpoint(tmp_path, BASE) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        load(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    folder = write_checkpoint(tmp_path, BASE, shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    gone = "model-00002-of-00003.safetensors"
    names = [n for n, file in index["weight_map"].items() if file == gone]
    (folder / gone).unlink()
    with pytest.raises(UserError, match="is missing") as error:
        load(folder)
    assert all(name in str(error.value) for name in names[:9])
