"""``benchmarks/gpu.py`` without a GPU: its engines, and its figures."""

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


@pytest.fixture
def on_an_h100(monkeypatch, tmp_path):
    """Runs ``main`` with an engine's figures by ``in_process``; returns the report."""

    def main(in_process, rounds):
        path = tmp_path / "gpu.json"
        name = lambda code: "H100" if "model_name" in code else ""  # noqa: E731
        monkeypatch.setattr(gpu, "in_process", in_process)
        monkeypatch.setattr(gpu, "ask", name)
        monkeypatch.setattr(gpu.models, "make_safetensors", lambda _, folder: folder)
        flags = ["gpu", "--rounds", str(rounds), "--json", str(path)]
        monkeypatch.setattr(sys, "argv", flags)
        gpu.main()

    return main


def test_an_engine_that_fails_ends_no_other(on_an_h100, capsys, tmp_path):
    rates = {name: 100.0 for name in ("prefill", *gpu.DECODES)}
    path = tmp_path / "gpu.json"

    def in_process(engine, *_, module):
        if engine == gpu.BASE:
            sys.exit("MAX failed: out of memory")
        return {"bytes/s": 1e12, "operations/s": 1e15} if "matmul" in module else rates

    with pytest.raises(SystemExit, match=r"Failed: MAX\."):
        on_an_h100(in_process, rounds=2)
    report = json.loads(path.read_text())
    assert report["tokens_per_second"]["max_mistral"]["prefill"] == [100.0, 100.0]
    assert {"gpu", "date", "commit", "max", "ceilings"} <= report.keys()
    assert "out of memory" in capsys.readouterr().out


class Engine:
    """What ``benchmarks/gpu.py`` calls of vLLM's ``LLMEngine``."""

    def __init__(self):
        self.running = {}
        self.steps = []

    def add_request(self, name, prompt, parameters):
        assert name not in self.running
        self.running[name] = prompt["prompt_token_ids"], parameters

    def abort_request(self, names):
        for name in names:
            del self.running[name]

    def step(self):
        self.steps.append(len(self.running))


def test_vllm_runs_the_prompts_of_now_alone(monkeypatch, tmp_path):
    made = {}

    def llm(model, **flags):
        made.update(flags, model=model)
        return SimpleNamespace(llm_engine=Engine())

    fake = SimpleNamespace(LLM=llm, SamplingParams=lambda **flags: flags)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    vllm = gpu.Vllm(tmp_path)
    vllm.start([[1, 2, 3]])()
    step = vllm.start([[4] * 100, [5] * 100])
    step()
    assert vllm.engine.steps == [1, 2]
    prompts = [prompt for prompt, _ in vllm.engine.running.values()]
    assert prompts == [[4] * 100, [5] * 100]
    for prompt, parameters in vllm.engine.running.values():
        assert len(prompt) + parameters["max_tokens"] < made["max_model_len"]
        assert parameters["ignore_eos"]
    assert (made["model"], made["dtype"]) == (str(tmp_path), "bfloat16")


def test_what_is_not_here_is_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "ask", lambda code: "")
    with pytest.raises(SystemExit) as end:
        gpu.run("vLLM", tmp_path)
    assert end.value.code == gpu.NOTHING
    assert capsys.readouterr().out == "vLLM is left out: no vllm here.\n"


def test_shares_of_a_gpu():
    """7.1 billion weights without the embedding's, of 2 bytes and 2 operations."""
    rates = {"prefill": 10_000, "decode_1": 100, "decode_8": 800, "decode_64": 6400}
    ceilings = {"bytes/s": 2 * 7.1e9 * 100, "operations/s": 2 * 7.1e9 * 6400}
    lines = [line.split() for line in gpu.shares(rates, ceilings).splitlines()]
    assert [line[0] for line in lines] == ["prefill", *gpu.DECODES]
    # 100 steps a second, each of which reads all weights, and the KV cache.
    assert [int(line[1][:-1]) for line in lines] == [20, 100, 101, 108]
    assert int(lines[3][4][:-1]) == 100


FAILED = {"failed": "ceilings failed:\nlibcublas.so.13 is missing"}


def test_rates_are_there_without_the_shares(monkeypatch, capsys, tmp_path):
    rates = {"prefill": 10_000.0, "decode_1": 100.0, "decode_8": 800.0}
    rates["decode_64"] = 6400.0
    monkeypatch.setattr(gpu, "OnGpu", lambda folder, name: None)
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: rates)
    path = tmp_path / "matmuls.json"
    path.write_text(json.dumps({"ceilings": FAILED}))
    gpu.run("max_mistral", tmp_path, path)
    first, *rest = capsys.readouterr().out.splitlines()
    assert json.loads(first) == rates
    assert "No shares of the GPU" in rest[0]
    assert "libcublas.so.13 is missing" in rest[1]
    # main() reads the last line.
    gpu.run("max_mistral", tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == rates


@pytest.mark.parametrize("fails", [False, True])
def test_results_are_written_whatever_the_ceilings(on_an_h100, capsys, tmp_path, fails):
    rates = {name: 100.0 for name in ("prefill", *gpu.DECODES)}
    path = tmp_path / "gpu.json"

    def in_process(engine, *_, module):
        if engine != "ceilings":
            return rates
        # Whatever this ends with, the rates are kept.
        assert "max_mistral" in json.loads(path.read_text())["tokens_per_second"]
        if fails:
            raise SystemExit(FAILED["failed"])
        return {"bytes/s": 1e12, "operations/s": 1e15}

    on_an_h100(in_process, rounds=1)
    assert ("No shares of the GPU" in capsys.readouterr().out) == fails
    assert ("failed" in json.loads(path.read_text())["ceilings"]) == fails
