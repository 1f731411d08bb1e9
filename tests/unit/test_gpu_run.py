"""``scripts/gpu_run.py``: what becomes of one step."""

import dataclasses
import subprocess
import sys

import pytest

from scripts import gpu_run
from scripts.gpu_steps import Step, steps
from tests.gpu_checks import wait_until
from workbench.verdict import LEFT_OUT, cause


def step(name, code):
    return Step(name, f"Is {name} right?", [sys.executable, "-c", code])


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
    result = gpu_run.run(asked, dry=False, seconds=60)
    assert (result.verdict, result.output) == ("yes", "[None, 'keep', '8001']")


@pytest.fixture
def ended_at(monkeypatch):
    """Has a step's time be over as soon as a file is there."""
    # The step's is asked for, not the shell's.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    communicate = subprocess.Popen.communicate

    def ended_at(path):
        def wait(process, timeout=None):
            if timeout is None:
                return communicate(process)
            wait_until(path.exists)
            raise subprocess.TimeoutExpired(process.args, timeout)

        monkeypatch.setattr(subprocess.Popen, "communicate", wait)

    return ended_at


HANGS = """
import time
from pathlib import Path
def test_that_hangs():
    print("12 tokens/s")
    Path({!r}).touch()
    time.sleep(99)
"""


def test_what_a_step_said_is_kept_when_it_is_ended(ended_at, tmp_path):
    ended_at(tmp_path / "there")
    code = HANGS.format(str(tmp_path / "there")) + "test_that_hangs()"
    result = gpu_run.run(step("slow", code), dry=False, seconds=60)
    assert (result.verdict, result.output) == ("too slow", "12 tokens/s")


def test_the_test_that_hangs_is_named(ended_at, tmp_path):
    (parity,) = [s for s in steps(tmp_path) if s.name == "parity-gqa"]
    flags = parity.command[: parity.command.index("tests/gpu/test_parity.py")]
    file = tmp_path / "test_file.py"
    file.write_text(HANGS.format(str(tmp_path / "there")))
    ended_at(tmp_path / "there")
    slow = dataclasses.replace(parity, command=[*flags, str(file)])
    result = gpu_run.run(slow, dry=False, seconds=60)
    assert result.verdict == "too slow"
    assert result.output.endswith("::test_that_hangs")


def test_a_step_at_a_time_with_others_has_its_share_of_the_memory():
    name = "MODULAR_DEVICE_CONTEXT_MEMORY_MANAGER_SIZE_PERCENT"
    asked = step("asked", f"import os; print(os.environ.get({name!r}))")
    asked = dataclasses.replace(asked, share=12)
    said = [
        gpu_run.run(asked, dry=False, seconds=60, is_alone=alone).output
        for alone in (False, True)
    ]
    assert said == ["12", "None"]


PYTEST, OTHER = ["python", "-m", "pytest", "-q"], ["python", "-m", "benchmarks.gpu"]


@pytest.mark.parametrize(
    ("command", "status", "output", "verdict"),
    [
        (PYTEST, 0, "4 passed in 2 s", "yes"),
        (PYTEST, 0, "2 passed, 3 skipped in 2 s", "yes"),
        (PYTEST, 0, "3 skipped in 2 s", "left out"),
        (PYTEST, 0, "=== 3 skipped in 2 s ===", "left out"),
        (PYTEST, 0, "3 skipped, 5 deselected in 2 s", "left out"),
        (PYTEST, 1, "1 failed, 3 skipped in 2 s", "no"),
        # What "-k" names is not there any more.
        (PYTEST, 5, "12 deselected in 2 s", "no"),
        (OTHER, LEFT_OUT, "vLLM is left out", "left out"),
        (OTHER, 0, "VERDICT: 3 skipped", "yes"),
        (OTHER, 5, "", "no"),
        (OTHER, 0, "", "yes"),
        (OTHER, -9, "", "no"),
    ],
)
def test_what_an_exit_status_says(command, status, output, verdict):
    assert gpu_run.judge(command, status, output) == verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import pytest\n@pytest.mark.skip\ndef test_these(): pass", "left out"),
        ("def test_these(): pass", "yes"),
        ("def test_another(): pass", "no"),
    ],
)
def test_what_pytest_itself_says(tmp_path, code, verdict):
    file = tmp_path / "test_file.py"
    file.write_text(code)
    flags = ["-v", "-rs", "-p", "no:cacheprovider", "-k", "test_these"]
    command = [sys.executable, "-m", "pytest", *flags, str(file)]
    result = gpu_run.run(Step("it", "?", command), dry=False, seconds=60)
    assert result.verdict == verdict, result.output


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("Traceback:\n  File ...\nValueError: no GPU\n  Use MODULAR_DEBUG\n", "no GPU"),
        ("tried\n1 failed, 2 passed in 3 s\n\n", "1 failed, 2 passed in 3 s"),
        ("E   ValueError: 2 > 1\nskipped\n1 failed in 3 s\n", "E   ValueError: 2 > 1"),
        ("", "it printed nothing"),
    ],
)
def test_why_a_step_did_not_say_yes(output, line):
    assert cause(output).removeprefix("ValueError: ") == line
    result = gpu_run.Result("no", 1.0, "python", output)
    assert result.answer == f"no: {cause(output)}"
    assert dataclasses.replace(result, verdict="yes").answer == "yes"
