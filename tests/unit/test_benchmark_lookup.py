"""``benchmarks/lookup.py``: engines that take turns, and what is kept of each round."""

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import lookup, lookup_worker
from workbench.batch import Answers, Request
from workbench.lookup_texts import COUNT, KINDS

ORDER = []


class Worker:
    """An engine whose rates are made up."""

    def __init__(self, name):
        self.name = name

    def ask(self, kind, count, turn):
        ORDER.append((self.name, kind, count, turn))
        if kind == "same":
            return count
        found = {"without": 10.0 + turn, "with": 20.0 + 4 * turn}
        if self.name == "llama.cpp":
            return found
        return found | {"drafted": 4, "right": 3}

    def finish(self):
        return {}

    def kill(self):
        pass


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    ORDER.clear()
    monkeypatch.setattr(lookup, "start", lambda engine, *paths: Worker(engine))
    monkeypatch.setattr(lookup, "prepare_demo", lambda: tmp_path)
    monkeypatch.setattr(lookup, "take_two_cpus", lambda: [0, 1])
    monkeypatch.setattr(lookup.models, "make", lambda shape, folder: folder)
    monkeypatch.setattr(lookup.models, "quantize", lambda folder, encoding: folder)
    path = tmp_path / "new" / "lookup.json"

    def run(*flags):
        words = ["lookup", "--json", str(path), "--rounds", "2", *flags]
        monkeypatch.setattr(sys, "argv", words)
        lookup.main()
        return json.loads(path.read_text())

    run.path = path
    return run


def test_engines_take_turns_and_every_round_is_kept(benchmark, capsys):
    report = benchmark("--same", "16")
    assert [(who, turn) for who, kind, count, turn in ORDER if count == 1][:4] == [
        ("smollm2", 0),
        ("llama.cpp", 0),
        ("llama.cpp", 1),
        ("smollm2", 1),
    ]
    # llama.cpp's takes one request.
    assert {count for who, _, count, _ in ORDER if who == "llama.cpp"} == {1}
    assert report["smollm2"]["edit"]["4"] == {
        "without": 10.5,
        "with": 22.0,
        "ratio": (2 + 24 / 11) / 2,
        "drafted": 8,
        "right": 6,
        "rounds": [
            {"without": 10.0, "with": 20.0, "drafted": 4, "right": 3},
            {"without": 11.0, "with": 24.0, "drafted": 4, "right": 3},
        ],
    }
    assert len(report["llama.cpp"]["chat"]["1"]["rounds"]) == 2
    assert report["same"] == [16, 16]
    assert set(report["1.1B"]) == set(KINDS)
    assert report["made"]["cpus"] == [0, 1]
    assert "equal with lookup and without: 16 of 16" in capsys.readouterr().out


def test_what_came_before_a_failure_is_kept(benchmark, monkeypatch):
    ask = Worker.ask

    def fails(self, kind, count, turn):
        if kind == "chat":
            raise SystemExit("smollm2 failed")
        return ask(self, kind, count, turn)

    monkeypatch.setattr(Worker, "ask", fails)
    with pytest.raises(SystemExit, match="smollm2 failed"):
        benchmark("--models", "smollm2", "--no-llama-cpp")
    report = json.loads(benchmark.path.read_text())
    assert set(report["smollm2"]) == {"edit", "document"}


class Batch:
    """Answers at once; keeps how it was asked."""

    def __init__(self):
        self.asked = []

    def answer(self, requests, *, lookup):
        self.asked.append((lookup, [list(request.tokens) for request in requests]))
        tokens = [[1, 2] for _ in requests]
        drafted, right = (5, 4) if lookup else (0, 0)
        rate = 30.0 if lookup else 10.0
        return Answers(tokens, [], rate=rate, drafted=drafted, right=right)


def test_a_worker_answers_both_ways_in_turns():
    batch = Batch()
    asked = {"edit": [Request([i], 9) for i in range(COUNT)]}
    worker = lookup_worker.Ours(batch, asked, None)
    said = {"without": 10.0, "with": 30.0, "drafted": 5, "right": 4}
    assert worker.answer("edit", 2, 0) == said
    assert worker.answer("edit", 2, 1) == said
    warm, *rest = batch.asked
    assert len(warm[1]) == COUNT
    assert rest == [
        (True, [[0], [1]]),
        (False, [[0], [1]]),
        (False, [[2], [3]]),
        (True, [[2], [3]]),
    ]


def test_an_answer_that_differs_is_not_measured():
    batch = Batch()
    batch.answer = lambda requests, *, lookup: Answers([[int(lookup)]], [], rate=1.0)
    worker = lookup_worker.Ours(batch, {"chat": [Request([1], 9)] * COUNT}, None)
    with pytest.raises(AssertionError):
        worker.answer("chat", 1, 0)


def test_llama_cpps_worker_asks_the_same_questions():
    prompts = []

    def engine(name):
        def generate(prompt, temp):
            prompts.append((name, prompt))
            yield from (5, 6, 7)

        return SimpleNamespace(
            reset=lambda: None, generate=generate, token_eos=lambda: 7
        )

    worker = lookup_worker.LlamaCpp.__new__(lookup_worker.LlamaCpp)
    worker.engines = {False: engine("without"), True: engine("with")}
    worker.asked = {"edit": [Request([i], 9) for i in range(COUNT)]}
    assert worker.answer("edit", 1, 1).keys() == {"without", "with"}
    assert worker.answer("edit", 1, 2).keys() == {"without", "with"}
    assert prompts == [
        ("without", [1]),
        ("with", [1]),
        ("with", [2]),
        ("without", [2]),
    ]
