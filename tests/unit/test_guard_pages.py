"""The CPU kernels touch no byte outside of what they are given.

Their tests run again, in a process that ends where one does.
"""

import signal
import subprocess
import sys

import pytest

from tests.e2e.conftest import environment
from workbench.demo import ROOT

KERNELS = [
    f"tests/unit/test_{name}.py"
    for name in ("kernels", "odd_shapes", "block", "attention_kernel")
]
# A guarded copy of a cache has no pages beyond it; the library needs no buffers; and
# threads wait in a hundred runs, whose buffers would all be kept.
LEFT_OUT = "not beyond_32_bits and not library and not threads_wait"


def run(guard, *tests):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.guard_pages"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests],
        cwd=ROOT,
        env=environment() | {"GUARD": guard},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.parametrize("guard", ["end", "begin"])
def test_no_kernel_leaves_its_memory(guard):
    result = run(guard, *KERNELS)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


def test_a_byte_outside_is_a_fault():
    """The last ones of each array are, here."""
    result = run("inside", KERNELS[-1])
    assert result.returncode in (-signal.SIGSEGV, 128 + signal.SIGSEGV), result.stdout
