"""The two cheapest of what ``make check-gpu-compile`` compiles, and their kernels."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_gpu_compile import compiles

ROOT = Path(__file__).parents[2]
# A block's, each step. Of weights nothing is left to do.
KERNELS = {
    "bfloat16": """\
transformer_block_0:
       gpu:0 composite.rms_norm_residual_add
       gpu:0 matmul
       gpu:0 rope_split_store.ragged.paged
       gpu:0 mha.ragged.paged
       gpu:0 matmul
       gpu:0 composite.rms_norm_residual_add
       gpu:0 matmul
       gpu:0 slice + slice + silu + mul
       gpu:0 matmul
""",
}


@pytest.mark.parametrize("name", ["bfloat16", "tensor-parallel"])
def test_it_compiles_for_a_gpu(name):
    assert compiles(name)


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_launched_in_vain(name):
    command = [sys.executable, "scripts/list_kernels.py", name]
    listed = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert listed.stdout == KERNELS[name]
