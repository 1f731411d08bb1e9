"""``scripts/check_gpu.py`` without a GPU: what it makes of steps, and its report."""

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import psutil
import pytest

from scripts import gpu_steps
from workbench import record
from workbench.checkpoints import CONFIGS
from workbench.demo import ROOT
from workbench.quantized import LAYOUTS

SCRIPT = ROOT / "scripts" / "check_gpu.py"
spec = importlib.util.spec_from_file_location("check_gpu", SCRIPT)
check_gpu = importlib.util.module_from_spec(spec)
sys.modules["check_gpu"] = check_gpu
spec.loader.exec_module(check_gpu)


def step(name, code):
    return check_gpu.Step(name, f"Is {name} right?", [sys.executable, "-c", code])


GOOD = step("good", "print('12 tokens a second')")
BAD = step("bad", "print('3 of 8 rows wrong'); raise SystemExit(1)")
# Its child would live on, and hold the output open.
ENDLESS = "import subprocess, time; subprocess.Popen(['sleep', '99']); time.sleep(99)"
SLOW = step("slow", ENDLESS)
ABSENT = step("absent", "raise SystemExit(5)")


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """Runs the command line with some steps; returns what it left and printed."""

    def run(found, *flags, **other):
        made = {"gpu": "H100", "commit": "1234", "max": "26.7.0"} | other
        monkeypatch.setattr(check_gpu, "origin", lambda dry: made)
        monkeypatch.setattr(check_gpu, "steps", lambda out: iter(found))
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


def test_each_answer(check, tmp_path):
    status, verdicts, _ = check([GOOD, BAD, SLOW, ABSENT], "--seconds", "3")
    assert verdicts == {
        "good": "yes",
        "bad": "no",
        "slow": "too slow",
        "absent": "left out",
    }
    assert status == "Not as it should be: bad, slow."
    report = (tmp_path / "report.md").read_text()
    assert "| bad | Is bad right? | no | " in report
    assert "3 of 8 rows wrong" in report
    assert "12 tokens a second" in report
    assert "On H100, at commit 1234, with MAX 26.7.0." in report


def test_it_goes_on_where_it_was(check):
    check([GOOD])
    status, verdicts, printed = check([GOOD, BAD])
    assert "good:" not in printed
    assert (verdicts, status) == (
        {"good": "yes", "bad": "no"},
        "Not as it should be: bad.",
    )
    _, _, printed = check([GOOD, BAD], "--again", "--steps", "good")
    assert "good: Is good right? yes" in printed
    assert "bad:" not in printed


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "H200"},
        {"commit": "1234-dirty"},
        {"commit": "5678"},
        {"max": "26.8.0"},
    ],
)
def test_it_does_not_go_on_elsewhere(check, tmp_path, other):
    check([GOOD])
    before = (tmp_path / "report.json").read_text()
    status, verdicts, printed = check([GOOD, BAD], **other)
    ((key, now),) = other.items()
    assert f"of another {key}: " in status
    assert now in status
    assert "--out" in status
    assert (verdicts, printed) == ({"good": "yes"}, "")
    assert (tmp_path / "report.json").read_text() == before


def test_it_does_not_go_on_from_a_report_that_says_nothing(check, tmp_path):
    """As those of before."""
    check([GOOD])
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"steps": json.loads(path.read_text())["steps"]}))
    status, _, _ = check([GOOD])
    assert "of another gpu: not said. Here it is H100." in status


@pytest.mark.parametrize("commit", ["1234-dirty", "unknown"])
def test_it_does_not_go_on_from_changes_without_a_commit(check, commit):
    """Two trees with changes of the same commit have the same name."""
    _, _, printed = check([GOOD, BAD], commit=commit)
    assert "runs again" not in printed
    one = ["--steps", "good"]
    status, verdicts, printed = check([GOOD, BAD], *one, commit=commit)
    assert f"has results of {commit}, whose changes may be others" in printed
    assert "good: Is good right? yes" in printed
    # What was bad in the other tree says nothing of this one.
    assert (status, verdicts) == (0, {"good": "yes"})


def test_a_dry_run_asks_for_no_gpu():
    made = check_gpu.origin(dry=True)
    assert made == {
        "gpu": "none: a dry run",
        "commit": record.commit(),
        "max": version("max"),
        "nvidia-cublas": record.origin("nvidia-cublas").get("nvidia-cublas", "none"),
    }


@pytest.mark.parametrize(
    "name",
    ["MAX_MISTRAL_MATMUL", "MAX_MISTRAL_VENDOR_BLAS", "MAX_SERVE_USE_VENDOR_BLAS"],
)
def test_a_step_has_no_choice_of_the_shells(monkeypatch, name):
    """Else "matmul-own" might ask about another matmul."""
    monkeypatch.setenv(name, "the shell's")
    monkeypatch.setenv("MAX_MISTRAL_FP8", "the shell's")
    monkeypatch.setenv("MAX_SERVE_PORT", "8001")
    names = (name, "MAX_MISTRAL_FP8", "MAX_SERVE_PORT")
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    asked = dataclasses.replace(
        step("asked", code), environment={"MAX_MISTRAL_FP8": "keep"}
    )
    result = check_gpu.run(asked, dry=False, seconds=60)
    assert (result.verdict, result.output) == ("yes", "[None, 'keep', '8001']")


# Each waits for the other's file, so that one at a time they would wait for ever.
MEET = """
import sys, time
from pathlib import Path
folder, mine, theirs = Path(sys.argv[1]), *sys.argv[2:]
(folder / mine).touch()
while not (folder / theirs).exists():
    time.sleep(0.05)
print("met")
"""


def test_several_at_a_time(check, tmp_path):
    def meet(mine, theirs):
        command = [sys.executable, "-c", MEET, str(tmp_path), mine, theirs]
        return check_gpu.Step(mine, "?", command)

    both = [meet("left", "right"), meet("right", "left")]
    after = dataclasses.replace(meet("last", "left"), alone=True)
    status, verdicts, printed = check([after, *both], "--jobs", "2", "--seconds", "60")
    assert (status, set(verdicts.values())) == (0, {"yes"})
    assert printed.index("last:") > max(printed.index("left:"), printed.index("right:"))


def test_its_end_is_the_steps_end(tmp_path):
    """Else they would hold the GPU, and the cores that the next check needs."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import check_gpu
step = check_gpu.Step("slow", "?", [sys.executable, "-c", {ENDLESS!r}])
check_gpu.steps = lambda out: iter([step])
check_gpu.origin = lambda dry: {{"gpu": "H100", "commit": "1234", "max": "26.7.0"}}
sys.argv = ["check_gpu", "--out", {str(tmp_path)!r}]
check_gpu.main()
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    started = psutil.Process(process.pid)
    wait_until(lambda: len(started.children(recursive=True)) == 2)
    children = started.children(recursive=True)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_unknown_step(check):
    check([GOOD])
    status, _, _ = check([GOOD], "--steps", "god")
    assert status == 2


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, "4 passed in 2 s", "yes"),
        (0, "2 passed, 3 skipped in 2 s", "yes"),
        (0, "3 skipped in 2 s", "left out"),
        (1, "1 failed, 3 skipped in 2 s", "no"),
        (0, "", "yes"),
        (-9, "", "no"),
    ],
)
def test_what_an_exit_status_says(status, output, verdict):
    assert check_gpu.judge(status, output) == verdict


def test_every_case_has_a_step(tmp_path):
    """The script names the cases itself, for it imports no package."""
    assert list(CONFIGS) == gpu_steps.CONFIGS
    assert list(LAYOUTS) == gpu_steps.LAYOUTS
    names = [step.name for step in gpu_steps.steps(tmp_path)]
    assert len(names) == len(set(names))
