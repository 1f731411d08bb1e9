"""``benchmarks/serving_shares.py``: of which models shares are known, and which."""

import json

import pytest

from benchmarks import gpu, matmul, serving_shares
from benchmarks.gpu_engines import DECODES

CONFIG = json.loads(matmul.CONFIG.read_text())
CEILINGS = {"bytes/s": 4e12, "operations/s": 7e14}


def test_they_are_those_of_the_model_alone():
    """Of the same step in the same time."""
    rates = {"prefill": 1e4, "decode_1": 150.0, "decode_8": 900.0, "decode_64": 5e3}
    theirs = gpu.shares(rates, CEILINGS)
    for name, (users, before, steps) in DECODES.items():
        seconds = users / rates[name]
        args = (CONFIG, users, before + steps // 2, seconds, CEILINGS)
        found = serving_shares.shares(*args)
        assert [*found.values()] == [100 * part for part in theirs[name].values()]
    # Of the model's 14.5 GB, at one request 150 times a second.
    one = theirs["decode_1"]["memory"]
    assert one == pytest.approx(14.5e9 * 150 / CEILINGS["bytes/s"], rel=0.02)


def test_a_window_bounds_what_is_read():
    windowed = CONFIG | {"sliding_window": 100}
    at_100, at_900 = (
        serving_shares.shares(windowed, 8, before, 0.01, CEILINGS)
        for before in (100, 900)
    )
    assert at_100 == at_900
    assert at_100 != serving_shares.shares(CONFIG, 8, 900, 0.01, CEILINGS)


def test_heads_may_have_another_width():
    wider = CONFIG | {"head_dim": 256}
    usual, other = (
        serving_shares.shares(values, 1, 1000, 0.01, CEILINGS)["of bandwidth, %"]
        for values in (CONFIG, wider)
    )
    assert other > usual


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], None),
        (["--devices", "gpu:0", "--max-length", "99"], None),
        (["--devices=gpu"], None),
        (["--quantization-encoding", "bfloat16", "--dtype", "auto"], None),
        (["--tensor-parallel-size", "1"], None),
        (["--devices", "gpu:0,1"], "of one GPU only, and --devices is gpu:0,1"),
        (["--tensor-parallel-size=2"], "--tensor-parallel-size 2 makes the model"),
        (["--weight-path", "a.gguf"], "--weight-path a.gguf makes the model"),
    ],
)
def test_flags_that_change_the_model(tmp_path, flags, said):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    why = serving_shares.unknown(str(tmp_path), flags)
    assert why is None if said is None else said in why


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"torch_dtype": None, "dtype": "bfloat16"}, None),
        ({"torch_dtype": "float32"}, "is of mistral in float32"),
        ({"model_type": "llama"}, "is of llama in bfloat16"),
        ({"quantization_config": {}}, "the model is quantized"),
    ],
)
def test_models_of_which_they_are_known(tmp_path, values, said):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | values))
    why = serving_shares.unknown(str(tmp_path), [])
    assert why is None if said is None else said in why


def test_a_model_of_the_hub_is_not_known():
    why = serving_shares.unknown("mistralai/Mistral-7B-v0.3", [])
    assert why == "mistralai/Mistral-7B-v0.3 is no folder with a config.json"


def test_what_the_gpu_reaches_is_read_or_measured(monkeypatch, tmp_path):
    def in_process(engine, module):
        assert (engine, module) == ("ceilings", "benchmarks.matmul")
        return {"bytes/s": 1.0}

    monkeypatch.setattr(serving_shares, "in_process", in_process)
    path = tmp_path / "ceilings.json"
    assert serving_shares.find_ceilings(None) == {"bytes/s": 1.0}
    assert serving_shares.find_ceilings(None, path) == {"bytes/s": 1.0}
    path.write_text(json.dumps({"ceilings": CEILINGS, "own": {}}))
    assert serving_shares.find_ceilings(None, path) == CEILINGS
    assert serving_shares.find_ceilings(path) == CEILINGS
    path.write_text("{}")
    failed = serving_shares.find_ceilings(path)["failed"]
    assert "ceilings.json does not say what the GPU reaches" in failed


def test_what_the_gpu_reaches_may_not_be_measured(monkeypatch):
    def in_process(engine, module):
        raise SystemExit("ceilings failed: no CUDA")

    monkeypatch.setattr(serving_shares, "in_process", in_process)
    assert serving_shares.find_ceilings(None) == {"failed": "ceilings failed: no CUDA"}
