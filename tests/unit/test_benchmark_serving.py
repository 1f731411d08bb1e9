"""``benchmarks/serving.py`` with a server that has no model."""

import json
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from benchmarks import matmul, serving, serving_shares
from benchmarks.serving_servers import Server
from benchmarks.serving_stream import Answer, ServingError
from tests.unit import fake_server
from tests.unit.fake_server import DONE
from workbench.verdict import LEFT_OUT

CEILINGS = {"bytes/s": 4e12, "operations/s": 7e14}


def test_what_users_get():
    answers = [
        Answer(10.0, [10.5, 11.0, 12.5], [1, 2, 1]),
        Answer(10.0, [11.5, 13.5], [1, 1]),
        Answer(10.0, [10.75], [1]),
    ]
    assert serving.figures(answers) == {
        "first token, ms": 750.0,
        "last first token, ms": 1500.0,
        "tokens/s, all users": 7 / 3.5,
        "tokens of an answer": 2,
        "between tokens, ms": (2000 / 3 + 2000) / 2,
    }
    assert "between tokens, ms" not in serving.figures(answers[2:])


def test_medians_of_what_all_rounds_have():
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 8.0}]
    assert serving.medians(rounds) == {"a": 3.0}


class FakeCrowd:
    """Users of whom each gets four tokens: a second to the first, half to the next."""

    def __init__(self, users, error=None):
        self.users = users
        self.error = error
        self.asked = []

    def ask(self, url, request, prompt):
        self.asked.append((url, request, prompt))
        if self.error:
            raise self.error
        return [Answer(5.0, [6.0, 6.5, 7.5], [1, 1, 2])] * self.users


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command line with fake users, on this GPU; returns what came of it."""

    def run(*words, on="", memory, error=None):
        commands, crowds = [], []

        @contextmanager
        def server(command, on_gpu, log_path):
            commands.append(command)
            assert log_path == tmp_path / "report.log"
            assert on_gpu == bool(on)
            yield Server("http://here", 1, on_gpu, None)

        @contextmanager
        def crowd(users):
            crowds.append(FakeCrowd(users, error))
            yield crowds[-1]

        monkeypatch.setattr(serving, "server", server)
        monkeypatch.setattr(serving, "crowd", crowd)
        monkeypatch.setattr(serving, "ask", lambda code: on)
        monkeypatch.setattr(Server, "memory", lambda self: memory)
        monkeypatch.setattr(Server, "version", lambda self: "1.2.3")
        path = tmp_path / "report.json"
        words = ["--json", str(path), "--users", "1", "2", "--rounds", "3", *words]
        monkeypatch.setattr(sys, "argv", ["serving", *words])
        serving.main()
        report = json.loads(path.read_text())
        return SimpleNamespace(
            command=commands[0],
            report=report,
            crowds=crowds,
            printed=capsys.readouterr().out,
        )

    return run


def test_on_a_cpu(run):
    memory = {"resident memory, GB": 1.5}
    ran = run("--model", "m", "--", "--devices", "cpu", memory=memory)
    assert ran.command[-2:] == ["--devices", "cpu"]
    made = ran.report.pop("made")
    named = (made["server"], made["version"], made["gpu"])
    assert named == ("max_mistral", "1.2.3", "none")
    assert list(ran.report) == ["1 users", "2 users"]
    figures = {
        "first token, ms": 1000.0,
        "last first token, ms": 1000.0,
        "tokens/s, all users": 2 * 4 / 2.5,
        "tokens of an answer": 4,
        "between tokens, ms": 500.0,
    }
    row = figures | memory | {"rounds": [figures] * 3}
    assert ran.report["2 users"] == row
    asked = ran.crowds[1].asked
    assert len(asked) == 4  # with one that warms up
    assert asked[0] == (
        "http://here/v1/completions",
        {
            "model": "m",
            "max_tokens": 128,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
        },
        256,
    )
    assert "resident memory, GB          1.5" in ran.printed
    assert "left out" not in ran.printed


def test_with_users_of_their_own_processes(monkeypatch, capsys):
    """Nothing is faked but the model."""

    @contextmanager
    def server(command, on_gpu, log_path):
        assert log_path is None  # without --json
        with fake_server.serving([1], [2, 3], DONE) as fake:
            yield Server(fake.root, os.getpid(), on_gpu, None)

    monkeypatch.setattr(serving, "server", server)
    words = ["--model", "m", "--users", "2", "--rounds", "1", "--", "--devices", "cpu"]
    monkeypatch.setattr(sys, "argv", ["serving", *words])
    serving.main()
    printed = capsys.readouterr().out
    assert "2 users\n  first token, ms " in printed
    assert "tokens of an answer          3.0\n" in printed
    assert "resident memory, GB" in printed


@pytest.fixture
def model(tmp_path):
    """A folder with a config; ceilings.json is beside, as beside the report."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(matmul.CONFIG.read_text())
    (tmp_path / "ceilings.json").write_text(json.dumps({"ceilings": CEILINGS}))
    return folder


def test_on_a_gpu(run, model):
    memory = {"GPU memory, GB": 12.5}
    ran = run("--model", str(model), on="H200", memory=memory)
    assert ran.report["made"]["gpu"] == "H200"
    row = ran.report["2 users"]
    assert row["GPU memory, GB"] == 12.5
    config = json.loads(matmul.CONFIG.read_text())
    shares = serving_shares.shares(config, 2, 256 + 128 // 2, 0.5, CEILINGS)
    assert shares == {name: row[name] for name in shares}
    assert "of bandwidth, % " in ran.printed
    assert "left out" not in ran.printed


def test_what_is_not_known_of_a_gpu_is_left_out(run):
    ran = run("--model", "org/name", on="H200", memory={})
    assert not [name for name in ran.report["1 users"] if "of " in name[:3]]
    why = "org/name is no folder with a config.json"
    assert f"Shares of the GPU are left out: {why}.\n" in ran.printed
    assert "GPU memory is left out: nvidia-smi cannot say it.\n" in ran.printed


def test_shares_are_left_out_without_cublas(run, model):
    failed = {"failed": "ceilings is left out: no cuBLAS here.", "left_out": True}
    matmuls = model / "other.json"
    matmuls.write_text(json.dumps({"ceilings": failed}))
    words = ["--model", str(model), "--ceilings", str(matmuls)]
    ran = run(*words, on="H200", memory={})
    assert "of peak, %" not in ran.report["1 users"]
    assert "left out: ceilings is left out: no cuBLAS here.\n" in ran.printed


def test_a_users_flags_of_the_server_count(run):
    ran = run("--model", "m", "--", "--max-batch-size", "8", memory={})
    # click takes the last one.
    assert ran.command[-6:] == [
        *("--max-length", "384", "--max-batch-size", "2"),
        *("--max-batch-size", "8"),
    ]


def test_each_engine(run, monkeypatch):
    monkeypatch.setattr(serving, "vllm_program", lambda: "/bin/vllm")
    ran = run("--model", "m", "--vllm", "--", "--dtype", "half", memory={})
    assert ran.command[1:3] == ["serve", "m"]
    assert ran.command[-2:] == ["--dtype", "half"]
    assert ran.report["made"]["server"] == "vLLM"
    ran = run("--model", "m", "--built-in", memory={})
    assert "--custom-architectures" not in ran.command
    assert ran.report["made"]["server"] == "MAX"


def test_vllm_is_left_out_where_it_is_not_installed(run, monkeypatch, capsys):
    monkeypatch.setattr(serving, "vllm_program", lambda: None)
    with pytest.raises(SystemExit) as end:
        run("--model", "m", "--vllm", memory={})
    assert end.value.code == LEFT_OUT
    assert "vLLM is left out: no vllm command" in capsys.readouterr().out


def test_a_refusal_ends_it(run):
    error = ServingError("The server answered 404, not 200")
    with pytest.raises(SystemExit, match="max_mistral: The server answered 404"):
        run("--model", "m", memory={}, error=error)


def test_ceilings_that_are_not_there(run, model):
    """They may have been too slow: what users get is worth something without."""
    words = ["--model", str(model), "--ceilings", "/no/ceilings.json"]
    ran = run(*words, on="H200", memory={})
    assert "left out: /no/ceilings.json does not say what the GPU" in ran.printed
    assert "of peak, %" not in ran.report["1 users"]
