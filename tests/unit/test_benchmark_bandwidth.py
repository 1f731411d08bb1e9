"""``benchmarks/bandwidth.py``: turns of the engines and of reads, and the table."""

import json
import shutil
import sys

import pytest

from benchmarks import bandwidth, limits
from workbench.demo import ROOT

RESULT = ROOT / "benchmarks" / "results" / "bandwidth.json"


class Reads:
    """Memory that is faster at each read: 10, 20, 30 ... bytes a second."""

    def __init__(self):
        self.count = 0

    def read(self):
        self.count += 1
        return 10.0 * self.count


def worker(log):
    class Worker:
        def __init__(self, engine, folder, gguf):
            self.engine = engine

        def finish(self):
            log.append("compiled")

        def rate(self, measure):
            log.append((self.engine, measure))
            return 2.0

        def kill(self):
            log.append("killed")

    return Worker


def test_engines_take_turns_with_reads(monkeypatch, tmp_path):
    log = []
    monkeypatch.setattr(bandwidth, "Stopped", worker(log))
    monkeypatch.setattr(bandwidth.limits, "work", lambda *_: {"weights": 10.0})
    row = bandwidth.measure(tmp_path, tmp_path, 2, Reads())
    assert row["step"] == 10.0
    ours, theirs = ("max_mistral", "steps"), ("llama.cpp", "steps")
    turns = [theirs, ours, ours, theirs, theirs, ours]
    assert log == ["compiled", *turns, "killed", "killed"]
    # Each turn begins with a read of its own; the first turn does not count, nor does
    # the first read.
    assert row["max_mistral"] == {"steps": [2.0, 2.0], "read": [55.0, 95.0]}
    assert row["llama.cpp"] == {"steps": [2.0, 2.0], "read": [65.0, 85.0]}
    assert bandwidth.parts(row, "llama.cpp") == [20 / 65, 20 / 85]


def test_no_engine_is_left_running(monkeypatch, tmp_path):
    log = []
    monkeypatch.setattr(bandwidth, "Stopped", worker(log))
    monkeypatch.setattr(bandwidth.limits, "work", lambda *_: {"weights": 10.0})

    class Broken(Reads):
        def read(self):
            if self.count:
                raise OSError("gone")
            return super().read()

    with pytest.raises(OSError, match="gone"):
        bandwidth.measure(tmp_path, tmp_path, 2, Broken())
    assert log == ["compiled", "killed", "killed"]


def test_of_some_reads_the_median_counts(tmp_path):
    program = tmp_path / "peak"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "rates = iter([5, 1, 9, 2, 8, 8])\n"
        "for line in sys.stdin:\n"
        "    print(next(rates), flush=True)\n"
    )
    program.chmod(0o755)
    reader = bandwidth.Reader(program, tmp_path)
    try:
        assert [reader.read(), reader.read()] == [5.0, 8.0]
    finally:
        reader.end()


def test_a_reader_that_ends_says_so(tmp_path):
    program = tmp_path / "peak"
    program.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    program.chmod(0o755)
    reader = bandwidth.Reader(program, tmp_path)
    with pytest.raises(SystemExit, match=r"peak reads failed \(exit status 3\)"):
        reader.read()
    reader.end()


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_a_file_is_read(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(4_000_000))
    reader = bandwidth.Reader(limits.built(tmp_path), file)
    try:
        assert reader.read() > 1e8
    finally:
        reader.end()


def test_the_table_has_medians_and_quartiles():
    ours = {"steps": [1.0, 2.0, 3.0, 4.0, 5.0], "read": [20e9] * 5}
    theirs = {"steps": [2.0] * 5, "read": [20e9] * 5}
    row = {"step": 4e9, "max_mistral": ours, "llama.cpp": theirs}
    report = {"cpu": "a CPU", "made": {"date": "2027-01-01"}, "1.1B q4_0": row}
    assert bandwidth.table(report).splitlines() == [
        "| model | memory, 1e9 bytes/s | max_mistral | llama.cpp |",
        "|---|---|---|---|",
        "| 1.1B q4_0 | 20 (20 to 20) | 60% (30% to 90%) | 40% (40% to 40%) |",
    ]


def test_the_document_has_the_report():
    report = json.loads(RESULT.read_text())
    assert bandwidth.table(report) in (ROOT / "docs" / "speed.md").read_text()
