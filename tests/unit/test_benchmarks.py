"""The benchmarks' course and their figures, without what they measure."""

import json
import os
import subprocess
import sys

import gguf
import pytest

from benchmarks import cpu, machine, models
from benchmarks.report import table
from benchmarks.rounds import run_rounds
from workbench.demo import ROOT


def python(code):
    # The environment spelt out: see tests/e2e/conftest.py.
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )


def test_a_start_is_timed_in_the_process_that_max_goes_on_with():
    """What is imported before would be imported twice."""
    code = """
import sys, time
import max._entrypoints.allocator as allocator
heavy = ("numpy", "max.pipelines", "max.driver", "click", "max_mistral")
def reexec():
    sys.exit(str([name for name in heavy if name in sys.modules]))
allocator.reexec_with_jemalloc = reexec
from benchmarks.start_parts import time_parts
time_parts(["generate"])
"""
    done = python(code)
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_what_a_benchmark_starts_has_its_cpus():
    code = """
import os, subprocess, sys
from benchmarks.machine import take_two_cpus
print(take_two_cpus(), flush=True)
child = "import os; print(sorted(os.sched_getaffinity(0)))"
subprocess.run([sys.executable, "-c", child], check=True)
"""
    done = python(code)
    ours, theirs = done.stdout.splitlines()
    assert ours == theirs
    assert 1 <= len(json.loads(ours)) <= 2


@pytest.mark.parametrize(
    ("allowed", "cores", "taken"),
    [
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 2]),
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1]),
        ({4, 5}, {4: "4-5", 5: "4-5"}, [4, 5]),
        ({6, 7, 9}, {}, [6, 7]),
        ({3}, {}, [3]),
    ],
)
def test_two_cpus_are_of_two_cores(monkeypatch, tmp_path, allowed, cores, taken):
    for number, siblings in cores.items():
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    asked = []
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    for name, function in [
        ("sched_getaffinity", lambda process: allowed),
        ("sched_setaffinity", lambda process, cpus: asked.append(cpus)),
    ]:
        monkeypatch.setattr(os, name, function, raising=False)
    assert machine.take_two_cpus() == taken
    assert asked == [taken]


def test_where_there_is_no_affinity_all_cpus_are_used(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert machine.take_two_cpus() == []


def test_an_engine_that_fails_is_left_out(capsys):
    turns = iter(range(9))

    def fails_later():
        if next(turns):
            raise SystemExit("out of memory")
        return {"speed": 1.0}

    kept = []
    found, failed = run_rounds(
        3,
        {"good": lambda: {"speed": 2.0}, "bad": fails_later},
        lambda results: kept.append(json.loads(json.dumps(results))),
    )
    assert (found, failed) == ({"good": {"speed": [2.0, 2.0, 2.0]}}, ["bad"])
    assert kept[0] == {"good": {"speed": [2.0]}, "bad": {"speed": [1.0]}}
    assert len(kept) == 3
    assert "out of memory" in capsys.readouterr().out


def test_a_table_without_what_it_compares_with():
    text = table({"ours": {"decode": [5.0]}, "llama.cpp": {}}, ["decode"])
    assert text.splitlines()[1].split() == ["ours", "5.0"]


PEAKS = {"read": 8e9, "int8": 1e8, "bfloat16": 5e7}
WORK = {"linear": 4e6, "head": 0.0, "attention": 0.0, "weights": 2e8, "kv": 0.0}


class Worker:
    """A process that measures, or none."""

    def rate(self, measure, *numbers):
        return 10.0

    def finish(self):
        return {"weight_bytes": 7, "needed_bytes": 8, "peak_bytes": 9}

    def kill(self):
        pass


def ends(rate):
    if rate is None:
        raise SystemExit("max generate failed:\nno memory")
    return {"end_to_end": rate}


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs the command line with fake engines; returns the report."""
    rates = {"max_mistral": 4.0, "llama.cpp": 2.0}
    monkeypatch.setattr(cpu, "take_two_cpus", lambda: [0, 1])
    monkeypatch.setattr(cpu, "cpu_name", lambda: "a CPU")
    monkeypatch.setattr(cpu.limits, "built", lambda folder: folder / "peak")
    monkeypatch.setattr(cpu.limits, "peaks", lambda program: PEAKS)
    monkeypatch.setattr(cpu.limits, "work", lambda folder, gguf: WORK)
    monkeypatch.setattr(cpu.models, "make", lambda shape, folder: folder)
    monkeypatch.setattr(cpu.models, "weights", lambda folder, encoding: folder)
    path = tmp_path / "new" / "cpu.json"

    def run(*flags, commit="1234", **changed):
        chosen = {
            name: cpu.Measured(lambda rate=rate: ends(rate), Worker)
            for name, rate in (rates | changed).items()
        }
        made = {"date": "2027-01-01", "commit": commit, "max": "26.7"}
        monkeypatch.setattr(cpu, "origin", lambda *packages: made)
        monkeypatch.setattr(cpu, "engines", lambda *_: chosen)
        words = ["--shapes", "300M", "--json", str(path), *flags]
        monkeypatch.setattr(sys, "argv", ["cpu", *words])
        cpu.main()

    run.path = path
    return run


def test_one_measure_alone(benchmark, capsys):
    benchmark("--encodings", "q4_0", "--measures", "prefill")
    row = json.loads(benchmark.path.read_text())["300M q4_0"]
    assert row["max_mistral"]["prefill"] == [10.0] * 3
    assert row["max_mistral"]["end_to_end"] == [4.0] * 3 * cpu.TURNS
    said = capsys.readouterr().out
    assert "10.0 (1.00x)" in said
    assert "read 8, int8 0.1, bfloat16 0.05; of that prefill 40%" in said


def test_a_failure_end_to_end_keeps_the_rest(benchmark):
    with pytest.raises(SystemExit, match="Failed end to end: max_mistral on 300M q4_0"):
        benchmark("--encodings", "q4_0", "q8_0", max_mistral=None)
    report = json.loads(benchmark.path.read_text())
    for name in ("300M q4_0", "300M q8_0"):
        assert report[name]["max_mistral"]["decode"] == [10.0] * 3
        assert "end_to_end" not in report[name]["max_mistral"]
        assert report[name]["llama.cpp"]["end_to_end"] == [2.0] * 3 * cpu.TURNS
        assert report[name]["peaks"]["decode"] == [PEAKS] * 3
        assert report[name]["work"] == WORK


def test_rounds_are_kept_before_the_end(benchmark, monkeypatch):
    # The first turn of both is not counted.
    rates = [1.0] * 2 + [10.0] * 4

    def rate(self, *_):
        return rates.pop(0) if rates else sys.exit("no memory")

    monkeypatch.setattr(Worker, "rate", rate)
    with pytest.raises(SystemExit, match="no memory"):
        benchmark("--encodings", "q4_0", "--measures", "prefill")
    row = json.loads(benchmark.path.read_text())["300M q4_0"]
    assert row["max_mistral"] == row["llama.cpp"] == {"prefill": [10.0, 10.0]}


def test_each_row_says_what_made_it(benchmark):
    old = {"cpu": "a CPU", "date": "2026-01-01", "1.1B q4_0": {"bandwidth": [1]}}
    benchmark.path.parent.mkdir()
    benchmark.path.write_text(json.dumps(old))
    benchmark("--encodings", "q4_0")
    benchmark("--encodings", "q8_0", commit="5678-dirty")
    report = json.loads(benchmark.path.read_text())
    assert {name: report[name] for name in old} == old
    assert report["300M q4_0"]["made"] == {
        "date": "2027-01-01",
        "commit": "1234",
        "max": "26.7",
        "cpus": [0, 1],
    }
    assert report["300M q8_0"]["made"]["commit"] == "5678-dirty"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no report of benchmarks.cpu"),
        ("[]", "is no report of benchmarks.cpu"),
        ('{"cpu": "another"}', "has results of another, and this is a CPU"),
    ],
)
def test_a_file_that_cannot_be_added_to(benchmark, text, said):
    benchmark.path.parent.mkdir()
    benchmark.path.write_text(text)
    with pytest.raises(SystemExit, match=said):
        benchmark()
    assert benchmark.path.read_text() == text


@pytest.mark.parametrize(
    "flags",
    [["--shapes", "3B"], ["--encodings", "foo"], ["--measures", "prefil"]],
)
def test_what_is_not_measured_is_refused(benchmark, capsys, flags):
    with pytest.raises(SystemExit):
        benchmark(*flags)
    assert "invalid choice" in capsys.readouterr().err


def test_encodings_are_llama_cpps():
    known = gguf.LlamaFileType.__members__
    assert {f"MOSTLY_{name.upper()}" for name in models.ENCODINGS} <= known.keys()
