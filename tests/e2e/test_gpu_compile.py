"""The two cheapest of what ``make check-gpu-compile`` compiles."""

import pytest

from scripts.check_gpu_compile import compiles


@pytest.mark.parametrize("name", ["bfloat16", "tensor-parallel"])
def test_it_compiles_for_a_gpu(name):
    assert compiles(name)
