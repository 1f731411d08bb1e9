"""``scripts/check_gpu.py`` where time is short, for a step or for all."""

import dataclasses

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


def test_no_time_at_all(check):
    check([GOOD])
    assert check([GOOD], "--for", "0")[0] == 2
