"""``benchmarks/plot.py``: old reports and new ones."""

import json

import pytest

from benchmarks import plot
from workbench.demo import ROOT

RESULTS = ROOT / "benchmarks" / "results"
REPORTS = sorted(RESULTS.glob("cpu*.json"))
# llama.cpp has no speed from end to end.
_ROW = {
    "max_mistral": {"prefill": [10.0], "decode": [3.0], "end_to_end": [2.0]},
    "llama.cpp": {"prefill": [10.0], "decode": [3.0]},
}
FAILED = {"cpu": "a CPU", "300M q4_0": _ROW}


def test_a_plot_says_what_made_each_row():
    made = {"date": "2027-01-01", "commit": "1234", "max": "26.7", "cpus": [0, 1]}
    rates = {"prefill": [10.0, 12.0], "decode": [3.0, 3.0]}
    row = {"made": made, "bandwidth": [1e9], "max_mistral": rates, "llama.cpp": rates}
    report = {"cpu": "a CPU", "300M q4_0": row, "300M q8_0": row}
    made = "date 2027-01-01, commit 1234, max 26.7"
    assert plot.origins(report) == f"300M q4_0, 300M q8_0: {made}"
    report["1.1B q4_0"] = report["300M q4_0"] | {"made": {"date": "2027-02-01"}}
    assert plot.days(report) == "2027-01-01 to 2027-02-01"
    assert plot.origins(report).endswith("\n1.1B q4_0: date 2027-02-01")
    assert "| 300M q4_0 | 11 (1.00x) |" in plot.markdown(report)


@pytest.mark.parametrize("path", REPORTS, ids=lambda p: p.stem)
def test_the_reports_of_before_are_read(path):
    report = json.loads(path.read_text())
    first, *last = plot.days(report).split(" to ")
    assert all(day in plot.origins(report) for day in [first, *last])
    assert "max_mistral" not in plot.markdown(report)
    assert plot.spread(report).startswith("apart: ")


def test_an_engine_that_failed_end_to_end_is_left_out():
    assert plot.markdown(FAILED).endswith("| 3 (1.00x) |  |")
    assert "end to end" not in plot.spread(FAILED)


@pytest.mark.parametrize("path", [*REPORTS, None], ids=lambda p: p.stem if p else "")
def test_reports_are_drawn(path, tmp_path):
    pytest.importorskip("matplotlib", reason="only pictures need it")
    report = json.loads(path.read_text()) if path else FAILED
    plot.draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_kv_cache_in_8_bits_is_compared_with_llama_cpps():
    ours, base = {"decode": [8.0]}, {"decode": [4.0]}
    report = {"max_mistral": ours, "llama.cpp": base}
    report["KV cache in 8 bits"] = {"decode": [9.0]}
    report["llama.cpp, KV cache in 8 bits"] = {"decode": [3.0]}
    report = {"cpu": "a CPU", "300M q4_0": report}
    lines = plot.markdown(report).splitlines()
    assert lines[-1] == "| 300M q4_0, KV cache in 8 bits | 9 (3.00x) |"


def test_the_part_of_the_cpus_most_that_a_model_took():
    peaks = {name: [{"read": 100.0}] for name in ("decode", "decode_deep")}
    rates = {"decode": [8.0], "decode_deep": [9.0]}
    row = {"max_mistral": rates, "llama.cpp": rates}
    known = row | {"peaks": peaks, "work": {"weights": 10.0, "kv": 0.0}}
    report = {"cpu": "a CPU", "300M q4_0": row, "300M q8_0": known}
    assert plot.parts(report).splitlines() == [
        "| model | decode | decode at 4,096 |",
        "|---|---|---|",
        "| 300M q8_0 | 80% | 90% |",
    ]
    assert plot.parts({"cpu": "a CPU", "300M q4_0": row}) == ""


def test_the_documents_have_the_report():
    report = json.loads((RESULTS / "cpu.json").read_text())
    assert plot.markdown(report) in (ROOT / "README.md").read_text()
    speed = (ROOT / "docs" / "speed.md").read_text()
    assert plot.parts(report) in speed
    assert plot.most(report) in speed
    apart = plot.spread(report).removeprefix("apart: ").split(" (")[0]
    assert apart.replace("%", " %") in speed


def test_the_document_has_the_table_of_hours():
    speed = (ROOT / "docs" / "speed.md").read_text()
    for report in json.loads((RESULTS / "hours.json").read_text()):
        row, cells = report["1.1B bf16"], []
        for measure in ("prefill", "decode_batch"):
            memory = [f"{p['read'] / 1e9:.0f}" for p in row["peaks"][measure]]
            ours, base = (row[e][measure] for e in ("max_mistral", "llama.cpp"))
            ratios = [f"{a / b:.2f}x" for a, b in zip(ours, base, strict=True)]
            cells += [", ".join(memory), ", ".join(ratios)]
        assert f" | {' | '.join(cells)} |\n" in speed
