"""``scripts/gpu_compare.py``: engines side by side, from what steps wrote."""

import json

from scripts.gpu_compare import comparison
from scripts.gpu_report import write
from scripts.gpu_run import Result
from scripts.gpu_steps import Step

OURS = {"tokens_per_second": {"prefill": 9000.0, "decode_1": 230.0}, "gpu_bytes": 24e9}
THEIRS = {"tokens_per_second": {"prefill": 6000.0, "decode_1": 200.0}}
SERVED = {
    "made": {"max": "26.7.0"},
    "8 users": {"first token, ms": 40.0, "rounds": [{"first token, ms": 40.0}]},
}
BUILT_IN = {"8 users": {"first token, ms": 80.0, "rounds": []}}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_engines_side_by_side():
    figures = {
        "speed-max_mistral": OURS,
        "speed-MAX": THEIRS,
        "serving": SERVED,
        "serving-max": BUILT_IN,
    }
    _, _, head, _, *rows = comparison(figures)
    assert cells(head) == ["", "max_mistral", "MAX", "ours / MAX"]
    assert [cells(row) for row in rows] == [
        ["prefill, tokens/s", "9,000", "6,000", "1.50"],
        ["decode_1, tokens/s", "230", "200", "1.15"],
        ["the GPU's memory, GB", "24", "-", "-"],
        ["8 users: first token, ms", "40", "80", "0.50"],
    ]


def test_an_engine_that_was_ended_early_has_what_it_has():
    some = {"tokens_per_second": {"prefill": 6000.0}}
    _, _, head, _, *rows = comparison({"speed-max_mistral": OURS, "speed-vLLM": some})
    assert cells(head) == ["", "max_mistral", "vLLM", "ours / vLLM"]
    assert cells(rows[1]) == ["decode_1, tokens/s", "230", "-", "-"]


def test_nothing_to_compare():
    assert comparison({}) == []
    assert comparison({"check-own": {"own": {"wrong": []}}}) == []


def test_the_report_has_what_steps_wrote(tmp_path):
    every = []
    for name, values in (("speed-max_mistral", OURS), ("speed-MAX", THEIRS)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        every.append(Step(name, "How fast?", ["true"], figures=path))
    half = tmp_path / "half.json"
    half.write_text('{"own": ')
    every.append(Step("half", "?", ["true"], figures=half))
    found = {step.name: Result("yes", 1.0, "true", "") for step in every}
    made = {"gpu": "H100", "commit": "1234", "max": "26.7.0"}
    write(tmp_path, every, made, found)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["figures"] == {"speed-max_mistral": OURS, "speed-MAX": THEIRS}
    assert report["gpu"] == "H100"
    text = (tmp_path / "report.md").read_text()
    assert "| prefill, tokens/s | 9,000 | 6,000 | 1.50 |" in text
