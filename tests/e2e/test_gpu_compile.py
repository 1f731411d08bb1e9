"""Our GPU kernels compile, and a model launches those that it should.

``make check-gpu-compile`` compiles whole models, in minutes each.
"""

import pytest

from scripts.check_gpu_compile import compiles
from tests.e2e.conftest import run_python

# A block's at each step, which no work on weights is among.
KERNELS = {
    "bfloat16": """
        composite.rms_norm_residual_add
        matmul
        rope_split_store.ragged.paged
        mha.ragged.paged
        matmul
        composite.rms_norm_residual_add
        matmul
        slice + slice + silu + mul
        matmul
    """,
    "gptq": """
        composite.rms_norm_residual_add
        qmatmul_b4_g128
        rope_split_store.ragged.paged
        mha.ragged.paged
        qmatmul_b4_g128
        composite.rms_norm_residual_add
        qmatmul_b4_g128
        slice + slice + silu + mul
        qmatmul_b4_g128
    """,
}


def test_our_kernels_compile_for_a_gpu():
    assert compiles("products-small")


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_launched_in_vain(name):
    listed = run_python("scripts/list_kernels.py", name)
    assert listed.returncode == 0, listed.stderr
    heading, *lines = listed.stdout.splitlines()
    assert heading == "transformer_block_0:"
    found = [line.split(maxsplit=1) for line in lines if "once" not in line]
    want = [line.strip() for line in KERNELS[name].strip().splitlines()]
    assert found == [["gpu:0", kernel] for kernel in want]
