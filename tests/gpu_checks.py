"""``scripts/check_gpu.py`` with steps that a test makes, and without a GPU."""

import json
import sys
import time

import pytest

from scripts import check_gpu
from workbench.verdict import LEFT_OUT


def step(name, code):
    command = [sys.executable, "-c", code]
    return check_gpu.Step(name, f"Is {name} right?", command, needs=1)


GOOD = step("good", "print('12 tokens a second')")
BAD = step("bad", "print('3 of 8 rows wrong'); raise SystemExit(1)")
# Its child would live on, and hold the output open.
ENDLESS = "import subprocess, time; subprocess.Popen(['sleep', '99']); time.sleep(99)"
SLOW = step("slow", ENDLESS)
ABSENT = step("absent", f"raise SystemExit({LEFT_OUT})")


@pytest.fixture(name="check")
def check_with_steps(monkeypatch, tmp_path, capsys):
    """Runs the command line with some steps; returns what it left and printed."""

    def run(found, *flags, **other):
        made = {"gpu": "H100", "commit": "1234", "max": "26.7.0"} | other
        monkeypatch.setattr(check_gpu, "origin", lambda dry: made)
        monkeypatch.setattr(check_gpu, "steps", lambda out, dry: iter(found))
        monkeypatch.setattr(sys, "argv", ["check_gpu", "--out", str(tmp_path), *flags])
        status = 0
        try:
            check_gpu.main()
        except SystemExit as end:
            status = end.code
        report = json.loads((tmp_path / "report.json").read_text())
        verdicts = {name: value["verdict"] for name, value in report["steps"].items()}
        return status, verdicts, capsys.readouterr().out

    return run


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
