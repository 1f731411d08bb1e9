"""What the engines of ``benchmarks/gpu.py`` have to do beside their model."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from max.dtype import DType
from max.graph import DeviceRef

from benchmarks import gpu, gpu_engines


def test_a_token_is_chosen_on_the_gpu():
    device = DeviceRef.GPU()
    (chosen,) = gpu_engines.choice(DType.float32, 32768, device).output_types
    assert (chosen.dtype, chosen.device) == (DType.int64, device)
    assert str(chosen.shape[0]) == "requests"
    assert chosen.shape[1] == 1


def test_the_choice_is_compiled_once_and_comes_to_the_host(monkeypatch):
    made = []

    def load(graph):
        made.append(graph)
        return SimpleNamespace(execute=lambda logits: [chosen])

    chosen = SimpleNamespace(to_numpy=lambda: np.array([[7], [9]]))
    logits = SimpleNamespace(dtype=DType.float32, shape=(2, 32), device=None)
    monkeypatch.setattr(DeviceRef, "from_device", lambda device: DeviceRef.GPU())
    engine = gpu_engines.OnGpu.__new__(gpu_engines.OnGpu)
    engine.likeliest = None
    engine.runner = SimpleNamespace(session=SimpleNamespace(load=load))
    assert list(engine.choose(logits)) == [7, 9]
    assert list(engine.choose(logits)) == [7, 9]
    assert len(made) == 1


def test_an_engine_that_fails_ends_no_other(monkeypatch, capsys, tmp_path):
    rates = {name: 100.0 for name in ("prefill", *gpu.DECODES)}
    path = tmp_path / "gpu.json"

    def in_process(engine, *_, module):
        if engine == gpu.BASE:
            sys.exit("MAX failed: out of memory")
        return {"bytes/s": 1e12, "operations/s": 1e15} if "matmul" in module else rates

    monkeypatch.setattr(gpu, "in_process", in_process)
    monkeypatch.setattr(gpu, "ask", lambda code: "H100" if "model_name" in code else "")
    monkeypatch.setattr(gpu.models, "make_safetensors", lambda values, folder: folder)
    monkeypatch.setattr(sys, "argv", ["gpu", "--rounds", "2", "--json", str(path)])
    with pytest.raises(SystemExit, match=r"Failed: MAX\."):
        gpu.main()
    report = json.loads(path.read_text())
    assert report["tokens_per_second"]["max_mistral"]["prefill"] == [100.0, 100.0]
    assert {"gpu", "date", "commit", "max", "ceilings"} <= report.keys()
    assert "out of memory" in capsys.readouterr().out
