"""``benchmarks/limits.py``: the CPU's most, and what a model took of it."""

import json
import shutil

import gguf
import numpy as np
import pytest

from benchmarks import limits

HIDDEN, LAYERS, VOCAB = 64, 2, 100


def test_a_prefill_multiplies_and_a_decode_reads(tmp_path):
    config = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.1.attn_q.weight": (HIDDEN, HIDDEN),
    }
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = limits.work(tmp_path, path)
    # Products of a matrix, twice for the sum; each of so many keys has one with the
    # query, and so has its value.
    keys = sum(range(1, 513)) / 512
    want = 2 * (LAYERS * HIDDEN * HIDDEN + VOCAB * HIDDEN / 512)
    want += LAYERS * 2 * 2 * HIDDEN * keys
    assert found["prefill"] == pytest.approx(want)
    assert found["prefill_deep"] > found["prefill"]
    size = HIDDEN + VOCAB * HIDDEN + LAYERS * HIDDEN * HIDDEN
    assert found["read"] == 4 * size


PEAKS = [{"read": 100.0, "bfloat16": 1000.0}, {"read": 200.0, "bfloat16": 2000.0}]
ROW = {
    "peaks": dict.fromkeys(["prefill", "decode", "decode_batch"], PEAKS),
    "work": {"prefill": 5.0, "prefill_deep": 6.0, "read": 10.0},
    "max_mistral": {"prefill": [100.0, 100.0], "decode": [5.0, 5.0]},
    "exact": {"prefill": [10.0, 10.0], "decode_batch": [40.0, 40.0]},
}


def test_the_part_of_the_peak_that_a_measure_took():
    assert limits.shares(ROW, "bf16") == {"prefill": 0.375, "decode": 0.375}
    # 8 requests a step; and of float32 the peak is not known.
    assert limits.shares(ROW, "bf16", "exact") == {"decode_batch": 0.375}
    assert limits.shares(ROW, "q4_0") == {"decode": 0.375}
    assert limits.shares({"max_mistral": {"decode": [5.0]}}, "q4_0") == {}


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
