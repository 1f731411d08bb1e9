"""``scripts/check_gpu.py`` without a GPU: what it makes of steps, and its report."""

import dataclasses
import json
import signal
import subprocess
import sys
from importlib.metadata import version

import psutil
import pytest

from scripts import check_gpu
from tests.gpu_checks import (  # noqa: F401
    ABSENT,
    BAD,
    ENDLESS,
    GOOD,
    SLOW,
    check_with_steps,
    step,
    wait_until,
)
from workbench import record
from workbench.demo import ROOT


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
    assert "| bad | Is bad right? | no: 3 of 8 rows wrong | " in report
    assert "3 of 8 rows wrong" in report
    assert "12 tokens a second" in report
    assert "On H100, at commit 1234, with MAX 26.7.0." in report


def test_what_a_step_answers_stands_in_its_place(check, tmp_path):
    code = "print('VERDICT: old'); print('VERDICT: own wrong (8 | 9)'); print('end')"
    wrong = step("wrong", "print('VERDICT: 3 of 8 rows'); raise SystemExit(1)")
    _, _, printed = check([step("own", code), wrong])
    assert "own: Is own right? own wrong (8 | 9) (" in printed
    report = (tmp_path / "report.md").read_text()
    assert "| own | Is own right? | own wrong (8 / 9) | " in report
    assert "| wrong | Is wrong right? | no: 3 of 8 rows | " in report
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert (steps["own"]["verdict"], steps["own"]["said"]) == (
        "yes",
        "own wrong (8 | 9)",
    )


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


def test_without_a_gpu_nothing_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(check_gpu, "GPU_NAME", "raise SystemExit('no CUDA here')")
    monkeypatch.setattr(check_gpu, "steps", lambda out, dry: iter([GOOD]))
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        check_gpu.main()
    assert "MAX finds no GPU here" in end.value.code
    assert "no CUDA here" in end.value.code
    assert "--dry-run" in end.value.code
    assert not (tmp_path / "report.json").exists()


def test_a_driver_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(check_gpu, "GPU_NAME", "import time; time.sleep(999)")
    monkeypatch.setattr(check_gpu, "ORIGIN_SECONDS", 0.5)
    with pytest.raises(SystemExit, match=r"has not found a GPU here within 0\.5 s"):
        check_gpu.origin(dry=False)


def test_a_dry_run_asks_for_no_gpu():
    made = check_gpu.origin(dry=True)
    assert made == {
        "gpu": "none: a dry run",
        "commit": record.commit(),
        "max": version("max"),
        "nvidia-cublas": record.origin("nvidia-cublas").get("nvidia-cublas", "none"),
    }


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
    more = meet("more", "last")
    found = [*both, after, more]
    status, verdicts, printed = check(found, "--jobs", "2", "--seconds", "60")
    assert (status, set(verdicts.values())) == (0, {"yes"})
    places = [printed.index(f"{name}:") for name in ("left", "right", "last", "more")]
    assert max(places[:2]) < places[2] < places[3]


def test_figures_of_another_check_are_not_taken(check, tmp_path):
    def writes(value):
        path = tmp_path / "figures" / "good.json"
        code = f"open({str(path)!r}, 'w').write('{value}'); print('written')"
        return dataclasses.replace(step("good", code), figures=path)

    def figures():
        return json.loads((tmp_path / "report.json").read_text())["figures"]

    check([writes(1)])
    assert figures() == {"good": 1}
    # Nothing that an earlier try wrote is taken for this one's.
    nothing = dataclasses.replace(writes(1), command=[sys.executable, "-c", ""])
    check([nothing], "--again")
    assert figures() == {}
    check([writes(2), BAD], "--again")
    (tmp_path / "report.json").unlink()
    check([writes(3), BAD], "--steps", "bad")
    assert figures() == {}
    # Nor read by other steps.
    assert not (tmp_path / "figures" / "good.json").exists()


def test_its_end_is_the_steps_end(tmp_path):
    """Else they would hold the GPU, and the cores that the next check needs."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import check_gpu
step = check_gpu.Step("slow", "?", [sys.executable, "-c", {ENDLESS!r}])
check_gpu.steps = lambda out, dry: iter([step])
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


def test_an_unknown_step(check):
    check([GOOD])
    status, _, _ = check([GOOD], "--steps", "god")
    assert status == 2
