"""``benchmarks/gpu.py`` without a GPU: its engines, and its figures."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from max.dtype import DType
from max.graph import DeviceRef

from benchmarks import gpu, gpu_engines, gpu_memory, gpu_shares
from workbench.verdict import LEFT_OUT


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
    assert end.value.code == LEFT_OUT
    assert capsys.readouterr().out == "vLLM is left out: no vllm here.\n"


def test_shares_of_a_gpu():
    """7.1 billion weights without the embedding's, of 2 bytes and 2 operations."""
    rates = {"prefill": 10_000, "decode_1": 100, "decode_8": 800, "decode_64": 6400}
    ceilings = {"bytes/s": 2 * 7.1e9 * 100, "operations/s": 2 * 7.1e9 * 6400}
    lines = [
        line.split() for line in gpu_shares.shares_text(rates, ceilings).splitlines()
    ]
    assert [line[0] for line in lines] == ["prefill", *gpu.DECODES]
    # 100 steps a second, each of which reads all weights, and the KV cache.
    assert [int(line[1][:-1]) for line in lines] == [20, 100, 101, 108]
    assert int(lines[3][4][:-1]) == 100


FAILED = {"failed": "ceilings failed:\nlibcublas.so.13 is missing"}


RATES = {"prefill": 10_000.0, "decode_1": 100.0, "decode_8": 800.0}
RATES["decode_64"] = 6400.0


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Weights' folder, on whose model each rate comes as it is in ``RATES``."""
    monkeypatch.setattr(gpu, "OnGpu", lambda folder, name: None)
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: iter(RATES.items()))
    used = iter([1e9, 25e9] * 9)
    monkeypatch.setattr(gpu, "used_bytes", lambda: next(used))
    monkeypatch.setattr(gpu_memory, "used_bytes", lambda: next(used))
    (tmp_path / "model.safetensors.index.json").touch()
    return tmp_path


def test_rates_are_there_without_the_shares(folder, capsys):
    path = folder / "ceilings.json"
    path.write_text(json.dumps({"ceilings": FAILED}))
    gpu.run("max_mistral", folder, path)
    first, *rest = capsys.readouterr().out.splitlines()
    assert "No shares of the GPU" in first
    assert "libcublas.so.13 is missing" in rest[0]
    # main() reads the last line.
    gpu.run("max_mistral", folder)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == RATES | {"gpu_bytes": 24e9}


def test_a_step_says_all_in_a_line_and_writes_it(folder, capsys):
    ceilings, report = folder / "ceilings.json", folder / "report.json"
    known = {"bytes/s": 2 * 7.1e9 * 200, "operations/s": 2 * 7.1e9 * 20_000}
    ceilings.write_text(json.dumps({"ceilings": known}))
    gpu.run("max_mistral", folder, ceilings, report)
    (said,) = [
        line.removeprefix("VERDICT: ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("VERDICT: ")
    ]
    assert said == (
        "prefill 10,000 tokens/s (49% of peak), decode 100 tokens/s at batch 1 (50% of "
        "memory), decode 800 tokens/s at batch 8 (51% of memory), decode 6,400 "
        "tokens/s at batch 64 (54% of memory), 24.0 GB"
    )
    found = json.loads(report.read_text())
    assert (found["engine"], found["gpu_bytes"]) == ("max_mistral", 24e9)
    assert found["tokens_per_second"] == RATES
    assert found["shares"]["decode_1"]["memory"] == pytest.approx(0.5, abs=0.01)


def test_each_rate_is_written_before_the_next_is_measured(folder, monkeypatch, capsys):
    report = folder / "report.json"

    def measure(*_, **__):
        yield "prefill", 9.0
        assert json.loads(report.read_text())["tokens_per_second"] == {"prefill": 9.0}
        assert "prefill            9.0 tokens/s" in capsys.readouterr().err
        raise MemoryError

    monkeypatch.setattr(gpu, "measure", measure)
    with pytest.raises(MemoryError):
        gpu.run("max_mistral", folder, report=report)


def test_weights_that_are_missing(tmp_path):
    with pytest.raises(SystemExit, match=f"--make --folder {tmp_path}"):
        gpu.run("max_mistral", tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_results_are_written_whatever_the_ceilings(on_an_h100, capsys, tmp_path, fails):
    rates = {name: 100.0 for name in ("prefill", *gpu.DECODES)} | {"gpu_bytes": 24e9}
    path = tmp_path / "gpu.json"

    def in_process(engine, *_, module):
        if engine != "ceilings":
            return rates
        # Whatever this ends with, the rates are kept.
        kept = json.loads(path.read_text())
        assert "gpu_bytes" not in kept["tokens_per_second"]["max_mistral"]
        assert kept["gpu_bytes"]["max_mistral"] == 24e9
        if fails:
            raise SystemExit(FAILED["failed"])
        return {"bytes/s": 1e12, "operations/s": 1e15}

    on_an_h100(in_process, rounds=1)
    printed = capsys.readouterr().out
    assert ("No shares of the GPU" in printed) == fails
    assert "max_mistral takes 24.0 GB of the GPU's memory." in printed
    assert ("failed" in json.loads(path.read_text())["ceilings"]) == fails
