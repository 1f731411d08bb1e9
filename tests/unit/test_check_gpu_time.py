"""``scripts/check_gpu.py`` where time is short, for a step or for all."""

import dataclasses
import json

from tests.gpu_checks import GOOD, SLOW, check_with_steps, step  # noqa: F401


def test_what_was_too_slow_is_asked_again(check):
    check([GOOD])
    status, verdicts, _ = check([GOOD, SLOW], "--seconds", "1")
    assert status == "Not as it should be: slow."
    assert verdicts == {"good": "yes", "slow": "too slow"}
    quick = step("slow", "print('now')")
    status, verdicts, printed = check([GOOD, quick])
    assert (status, verdicts) == (0, {"good": "yes", "slow": "yes"})
    assert "good:" not in printed


def test_no_step_begins_without_the_time_that_it_needs(check, tmp_path):
    long = dataclasses.replace(step("long", "print('begun')"), needs=2000)
    flags = ["--for", "1000"]
    status, verdicts, printed = check([long, GOOD], *flags)
    assert (status, verdicts) == (0, {"long": "no time left", "good": "yes"})
    assert "long:" not in printed
    assert "No time was left for long. Run this again for them." in printed
    report = (tmp_path / "report.md").read_text()
    assert "| long | Is long right? | no time left: needs 2000 s, " in report
    # With time it is asked, and the other one is not asked again.
    _, verdicts, printed = check([long, GOOD])
    assert verdicts == {"long": "yes", "good": "yes"}
    assert "good:" not in printed
    # What is known is not lost where there is no time to ask it again.
    _, verdicts, printed = check([long, GOOD], "--again", *flags)
    assert verdicts == {"long": "yes", "good": "yes"}
    assert "No time was left for long." in printed


def test_a_step_ends_with_the_time_of_all(check):
    slow = dataclasses.replace(SLOW, needs=0)
    status, verdicts, printed = check([slow, GOOD], "--for", "2")
    assert (status, verdicts) == (0, {"slow": "no time left", "good": "no time left"})
    assert "No time was left for slow, good." in printed


def test_what_is_known_stays_where_time_ends(check, tmp_path):
    """A step that is asked again, and does not end in time."""
    figures = tmp_path / "time.json"
    write = f"import pathlib; pathlib.Path({str(figures)!r}).write_text('[12]')"
    known = dataclasses.replace(step("time", write), figures=figures)
    assert check([known])[1] == {"time": "yes"}
    slow = f"{write.replace('12', '34')}; import time; time.sleep(99)"
    slow = dataclasses.replace(step("time", slow), figures=figures)
    _, verdicts, printed = check([slow], "--again", "--for", "2")
    assert "time: Is time right? no time left" in printed
    assert "No time was left for time." in printed
    assert (verdicts, figures.read_text()) == ({"time": "yes"}, "[12]")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["figures"] == {"time": [12]}
    # Where a step's own time is over, that is the answer.
    assert check([slow], "--again", "--seconds", "1")[1] == {"time": "too slow"}


def test_no_time_at_all(check):
    check([GOOD])
    assert check([GOOD], "--for", "0")[0] == 2
