"""Mojo programs of tests."""

from pathlib import Path

from mojo.run import subprocess_run_mojo

from max_mistral import kernels


def printed_by(program: Path) -> list[str]:
    """Returns the lines that a program prints, which may import ``kernels``."""
    command = ["run", "-I", str(Path(kernels.__file__).parent.parent), str(program)]
    done = subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()
