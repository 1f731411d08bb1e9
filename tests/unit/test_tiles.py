"""The multistage GEMM's tiles: what they fit, and that a GPU has room for them."""

import re

import pytest
from max.dtype import DType

from max_mistral.gpu_matmul import slow_products
from workbench.demo import ROOT


def read_tiles(*, is_small):
    """Returns of each dtype's tiles the columns, the terms and the fewest of them.

    And the bytes of shared memory that a block takes (``_shared_memory_usage`` of
    MAX's ``linalg``). Of ``tiles.mojo``, whose numbers Python can read.
    """
    text = (ROOT / "max_mistral/gpu_kernels/tiles.mojo").read_text()
    blocks = re.findall(
        r"block_tile_shape=Index(\(.*?\)),\n.*?"
        r"num_pipeline_stages=(.*?),\n(?:\s+num_warp_k_partitions=(\d))?",
        text,
        re.DOTALL,
    )
    assert len(blocks) == 4
    found = {dtype: [] for dtype in slow_products._TILES}
    for i, (shape, stages, partitions) in enumerate(blocks):
        others = [DType.bfloat16, DType.float8_e4m3fn]
        for dtype in [DType.float32] if i == 0 else others:
            names = {"bytes": dtype.size_in_bytes, "is_small": is_small}
            names |= {"dtype": dtype, "FP8": DType.float8_e4m3fn}
            rows, columns, depth = eval(shape, names)
            depth *= int(partitions or 1)
            fewest = depth * eval(stages, names)
            taken = (rows + columns) * fewest * dtype.size_in_bytes
            found[dtype].append(((columns, depth, fewest), taken))
    return found


def test_the_tiles_are_those_of_the_kernels():
    for dtype, tiles in read_tiles(is_small=False).items():
        assert tuple(tile for tile, _ in tiles) == slow_products._TILES[dtype]


@pytest.mark.parametrize(("is_small", "most"), [(False, 166_912), (True, 101_376)])
def test_the_tiles_fit_into_shared_memory(is_small, most):
    """What a block may have on an A100, and on Ada, RTX Blackwell and an RTX 30."""
    for dtype, tiles in read_tiles(is_small=is_small).items():
        for tile, known in zip(tiles, slow_products._TILES[dtype], strict=True):
            (columns, terms, fewest), taken = tile
            assert taken <= most
            # What the log calls slow may be fast there, but not the other way.
            assert columns == known[0]
            assert known[1] % terms == 0
            assert fewest <= known[2]
