"""How rows of activations are interleaved by several threads."""

from pathlib import Path

from mojo.run import subprocess_run_mojo

from max_mistral import kernels

PROGRAM = Path(__file__).with_name("stages.mojo")


def test_any_number_of_threads_leaves_the_same_bytes():
    command = ["run", "-I", str(Path(kernels.__file__).parent.parent), str(PROGRAM)]
    done = subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 * (3 * 4 + 2 * 3 + 1) * 3
    assert [line for line in lines if not line.endswith("True")] == []
