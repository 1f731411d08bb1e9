"""``benchmarks/gpu.py`` without a GPU: an engine that is a fake, and its figures."""

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import gpu, matmul
from max_mistral.gpu_matmul.products import Product


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
def test_results_are_written_whatever_the_ceilings(
    monkeypatch, capsys, tmp_path, fails
):
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

    monkeypatch.setattr(gpu, "in_process", in_process)
    monkeypatch.setattr(gpu, "ask", lambda code: "H100" if "model_name" in code else "")
    monkeypatch.setattr(gpu.models, "make_safetensors", lambda values, folder: folder)
    monkeypatch.setattr(sys, "argv", ["gpu", "--rounds", "1", "--json", str(path)])
    gpu.main()
    assert ("No shares of the GPU" in capsys.readouterr().out) == fails
    assert ("failed" in json.loads(path.read_text())["ceilings"]) == fails


@pytest.mark.parametrize("failing", [[], ["cublas"], ["ceilings", "own"]])
def test_a_matmul_that_failed_is_the_exit_status(
    monkeypatch, capsys, tmp_path, failing
):
    def in_process(name, *_, module):
        if name in failing:
            raise SystemExit(f"{name} failed")
        if name == "ceilings":
            return {"bytes/s": 1e12, "operations/s": 1e15}
        seconds = {str(rows): 1e-3 for rows in matmul.ROWS}
        return {"wrong": [], "check_seconds": 1.0, "seconds": seconds}

    monkeypatch.setattr(matmul, "in_process", in_process)
    path = tmp_path / "matmuls.json"
    names = ["--matmuls", "own", "cublas"]
    monkeypatch.setattr(sys, "argv", ["matmul", *names, "--json", str(path)])
    if failing:
        with pytest.raises(SystemExit, match=f"Failed: {', '.join(failing)}."):
            matmul.main()
    else:
        matmul.main()
    assert set(json.loads(path.read_text())) == {"ceilings", "own", "cublas"}
    # Without the ceilings there are the times.
    assert "1.000" in capsys.readouterr().out


def test_the_table_of_matmuls():
    every = [Product(100, 50), Product(50, 100)]
    seconds = {str(rows): 2e-8 * rows for rows in matmul.ROWS}
    own = {"wrong": ["8 of the rows"], "check_seconds": 3.0, "seconds": seconds}
    ceilings = {"bytes/s": 2e12, "operations/s": 2e12}
    fp8 = [Product(100, 50, fp8=True), Product(50, 100, fp8=True)]
    found = {"ceilings": ceilings, "own": own, "fp8": own}
    text = matmul.report(found, {"own": every, "fp8": fp8})
    # 20,000 bytes and operations in 20 ns.
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 ")]
    assert row.split(" | ")[1:4] == ["0.000", "50%", "50%"]
    # Half the bytes.
    assert row.rstrip(" |").split(" | ")[-3:] == ["0.000", "25%", "50%"]
    assert "own (3 s): 8 of the rows" in text
