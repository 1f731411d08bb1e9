"""The CPU kernels compile for other machines, to what those can run."""

import subprocess
from pathlib import Path

import pytest
from mojo.run import subprocess_run_mojo

from max_mistral import kernels
from max_mistral.kernels.packing import BLOCKS, Encoding, panel_bytes

PROGRAM = Path(__file__).parent / "cpu_targets.mojo"
LAYOUTS = Path(__file__).parent / "layouts.mojo"
# Target: triple, instructions that must be there, and that must not.
TARGETS = {
    "haswell": ("x86_64-unknown-linux-gnu", ["vfmadd", "ymm"], ["zmm", "vpdpbusd"]),
    "neoverse-n1": ("aarch64-unknown-linux-gnu", ["fmla"], []),
    "apple-m1": ("arm64-apple-macosx", ["fmla"], []),
}


@pytest.mark.parametrize("cpu", TARGETS)
def test_kernels_compile_for(cpu, tmp_path):
    triple, present, absent = TARGETS[cpu]
    target = tmp_path / "kernels.s"
    command = ["build", "-I", str(Path(kernels.__file__).parent.parent)]
    command += ["--emit", "asm", "--target-triple", triple, "--target-cpu", cpu]
    command += [str(PROGRAM), "-o", str(target)]
    subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    assembly = target.read_text()
    assert all(word in assembly for word in present)
    assert not any(word in assembly for word in absent)


def test_mojo_and_python_agree_on_every_size(tmp_path):
    """``layout.ENCODINGS`` and ``packing.BLOCKS``, of which either could be wrong."""
    program = tmp_path / "layouts"
    command = ["build", "-I", str(Path(kernels.__file__).parent.parent)]
    command += [str(LAYOUTS), "-o", str(program)]
    subprocess_run_mojo(command, check=True, capture_output=True, text=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True)
    found = [line.split() for line in printed.stdout.splitlines()]
    assert [name for name, *_ in found] == [encoding.name for encoding in Encoding]
    for encoding, (_, columns, block, panel) in zip(Encoding, found, strict=True):
        assert BLOCKS[encoding][0] in (int(columns), 1)
        assert panel_bytes(encoding, int(columns)) == int(block)
        assert panel_bytes(encoding, 4096) == int(panel)
