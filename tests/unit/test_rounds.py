"""``benchmarks/rounds.py``: an engine's process, and what it says."""

import subprocess
import sys

import pytest

from benchmarks.rounds import in_process
from workbench.demo import ROOT


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Writes a module that a process of its own can run; returns its name."""

    def write(code):
        (tmp_path / "engine_of_a_test.py").write_text(code)
        return "engine_of_a_test"

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


SAYS = "import sys; print('half', file=sys.stderr); print('[0]'); print('{\"a\": 1}')"


@pytest.mark.parametrize("shown", [False, True])
def test_what_an_engine_says_is_shown_if_asked_for(module, capfd, shown):
    assert in_process("own", module=module(SAYS), shown=shown) == {"a": 1}
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "half\n" * shown)


def test_an_engine_that_fails_says_why(module, capfd):
    code = "import sys; print('x' * 9000 + 'why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(SystemExit) as end:
        in_process("own", module=module(code))
    assert end.value.code.startswith("own failed:\nxxx")
    assert end.value.code.endswith("xwhy\n")
    assert len(end.value.code) < 3100


def test_what_it_says_is_there_before_it_ends(module, tmp_path):
    """Else nothing would be known of one that is too slow."""
    name = module(
        "import select, sys; print('half', file=sys.stderr, flush=True); "
        "select.select([sys.stdin], [], [], 60)"
    )
    code = f"""
from benchmarks.rounds import in_process
in_process("own", module={name!r}, shown=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # It waits for the end of its input, which has not come.
        assert process.stderr.readline() == "half\n"
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stderr.close()
