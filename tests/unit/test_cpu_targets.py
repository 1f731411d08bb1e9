"""The CPU kernels compile for other machines, to what those can run."""

import re
from pathlib import Path

import pytest
from mojo.run import subprocess_run_mojo

from max_mistral import kernels

PROGRAM = Path(__file__).parent / "cpu_targets.mojo"
X86 = "x86_64-unknown-linux-gnu"
# Target: triple, instructions that must be there, and that must not.
TARGETS = {
    "haswell": (X86, ["vfmadd", "ymm", "vpmaddubsw"], ["zmm", "vpdpbusd"]),
    "alderlake": (X86, ["vfmadd", "vpdpbusd"], ["zmm", "vpmaddubsw"]),
    "cascadelake": (X86, ["vfmadd", "vpdpbusd", "zmm"], ["vpmaddubsw", "vdpbf16ps"]),
    # The one with AVX512-BF16 and without AVX512-VBMI.
    "cooperlake": (X86, ["vpdpbusd", "vdpbf16ps"], ["vpermi2b", "vpermt2b", "tmm"]),
    "znver4": (X86, ["vpdpbusd", "vdpbf16ps", "vpermt2b"], ["vpmaddubsw", "tmm"]),
    "sapphirerapids": (X86, ["vpdpbusd", "vdpbf16ps", "tdpbf16ps"], ["vpmaddubsw"]),
    "neoverse-n1": ("aarch64-unknown-linux-gnu", ["fmla", "sdot"], []),
    "apple-m1": ("arm64-apple-macosx", ["fmla", "sdot"], []),
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
    # A thread that waits says so.
    assert re.search(r"^\s+(pause|yield|hint\s+#0x1)$", assembly, re.M)
    assert all(word in assembly for word in present)
    assert not any(word in assembly for word in absent)
