"""``benchmarks/limits.py``: the CPU's most, and what a model took of it."""

import json
import shutil

import gguf
import numpy as np
import pytest

from benchmarks import limits
from max_mistral import kernels

HIDDEN, LAYERS, VOCAB = 64, 2, 100


def work(folder, tensors, **how):
    """Returns it of a model with these tensors."""
    config = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, data in tensors.items():
        writer.add_tensor(name, data, **how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return limits.work(folder, path)


def test_what_a_model_has_to_do(tmp_path):
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.1.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.1.attn_k.weight": (16, HIDDEN),
        "blk.1.attn_v.weight": (16, HIDDEN),
        "blk.1.ffn_up.weight": (HIDDEN, HIDDEN),
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert work(tmp_path, tensors) == {
        # Of the last block, what becomes keys and values.
        "linear": 2 * (HIDDEN + 2 * 16) * HIDDEN,
        "head": 2 * (VOCAB + 2 * HIDDEN) * HIDDEN,
        # A product of the query and the key, and one of the probability and the value.
        "attention": (LAYERS - 1) * 2 * 2 * HIDDEN,
        "weights": 4 * HIDDEN * (1 + VOCAB + 3 * HIDDEN + 2 * 16),
        # 2 heads of 8 lanes, keys and values.
        "kv": LAYERS * 2 * 2 * 8,
    }


@pytest.mark.parametrize(("bfloat16", "bits"), [(True, 12), (False, 16)])
def test_what_is_read_of_bfloat16(tmp_path, monkeypatch, bfloat16, bits):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(kernels, "has_amx", lambda: False)
    data = np.zeros((VOCAB, 2 * HIDDEN), np.uint8)
    found = work(
        tmp_path, {"output.weight": data}, raw_dtype=gguf.GGMLQuantizationType.BF16
    )
    assert found["weights"] == VOCAB * HIDDEN * bits / 8


WORK = {"linear": 70.0, "head": 512.0, "attention": 4.0, "weights": 800.0, "kv": 0.5}
PEAKS = {"read": 1e3, "float32": 1e3, "bfloat16": 2e3, "int8": 4e3}


@pytest.mark.parametrize(
    ("measure", "encoding", "engine", "seconds"),
    [
        # A token's linear layers, its part of the head, and 256.5 keys.
        ("prefill", "bf16", "max_mistral", (71 + 4 * 256.5) / 2e3),
        ("prefill", "bf16", "exact", (71 + 4 * 256.5) / 1e3),
        ("prefill", "q4_0", "max_mistral", 71 / 4e3 + 4 * 256.5 / 2e3),
        # The weights are read once a step, whose requests have 16 tokens each.
        ("decode", "q4_0", "max_mistral", (800 + 0.5 * 16 * 2) / 1e3),
        ("decode_batch", "q4_0", "max_mistral", (100 + 0.5 * 16 * 2) / 1e3),
        ("decode_deep", "bf16", "exact", (800 + 0.5 * 4096 * 4) / 1e3),
    ],
)
def test_the_time_that_the_cpu_takes_at_least(measure, encoding, engine, seconds):
    found = limits.least_seconds(measure, WORK, PEAKS, encoding, engine)
    assert found == pytest.approx(seconds)


def test_the_part_of_the_peak_that_a_measure_took():
    rates = {"prefill": [1.0, 1.0], "decode": [0.5, 0.5], "end_to_end": [1.0, 1.0]}
    row = {"max_mistral": rates, "exact": {"decode": [0.25, 0.25]}, "work": WORK}
    assert limits.shares(row, "bf16") == {}
    slow = {name: value / 2 for name, value in PEAKS.items()}
    row["peaks"] = {name: [PEAKS, slow] for name in ("prefill", "decode")}
    assert limits.shares(row, "bf16") == {
        "prefill": pytest.approx(1.5 * (71 + 4 * 256.5) / 2e3),
        "decode": pytest.approx(1.5 * 0.5 * 816 / 1e3),
    }
    assert limits.shares(row, "bf16", "exact") == {
        "decode": pytest.approx(1.5 * 0.25 * 832 / 1e3)
    }
    # A CPU without AVX512-VNNI.
    row["peaks"] = {"prefill": [{"read": 1e3, "float32": 1e3, "bfloat16": 1e3}] * 2}
    assert limits.shares(row, "q4_0") == {}


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_the_peaks_are_measured_and_the_program_is_kept(tmp_path):
    program = limits.built(tmp_path / "new")
    made = program.stat().st_mtime_ns
    assert limits.built(tmp_path / "new").stat().st_mtime_ns == made
    found = limits.peaks(program)
    assert found[limits.READ] > 1e8
    assert set(found) <= {limits.READ, "float32", "bfloat16", "int8"}
    assert all(value > 1e8 for value in found.values())


def test_without_a_compiler_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="There is no C\\+\\+ compiler"):
        limits.built(tmp_path)
