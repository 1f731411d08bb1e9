"""Products on MAX's multistage GEMM: which of its tiles, by the shapes."""

from layout import TileTensor
from linalg.gemv import gemv_gpu
from linalg.matmul.gpu import enqueue_matmul_kernel_naive, multistage_gemm
from linalg.utils import ElementwiseEpilogueFn, no_compute_fn
from linalg.utils_gpu import MatmulConfig
from max.gpu.host import DeviceContext
from std.sys import size_of
from std.utils import Index

comptime FP8 = DType.float8_e4m3fn
comptime TILES = 3


def _config[
    dtype: DType, c_type: DType, transpose_b: Bool
](tile: Int) -> MatmulConfig[dtype, dtype, c_type, transpose_b]:
    """Returns a tile's shape, smallest first: up to 16, 64 and more rows.

    For bfloat16, those of MAX's table for an A100 at a 7B's shapes, which take up to
    160 KB of shared memory. Others fit into the 99 KB that a block may have on Ada,
    RTX Blackwell and small Ampere GPUs, and those for FP8 too.
    """
    comptime bytes = size_of[dtype]()
    comptime shared = DeviceContext.default_device_info.shared_memory_per_multiprocessor
    comptime is_small = shared < 160 * 1024
    comptime if dtype == DType.float32:
        # As TF32; only the last: their bytes would not fit.
        return MatmulConfig[dtype, dtype, c_type, transpose_b](
            block_tile_shape=Index(128, 128, 16),
            warp_tile_shape=Index(64, 64, 16),
            num_pipeline_stages=4,
        )
    if tile == 0:
        return MatmulConfig[dtype, dtype, c_type, transpose_b](
            block_tile_shape=Index(16, 64, 128 // bytes if is_small else 128),
            warp_tile_shape=Index(16, 32, 64 // bytes),
            num_pipeline_stages=4,
            num_warp_k_partitions=2,
        )
    if tile == 1:
        return MatmulConfig[dtype, dtype, c_type, transpose_b](
            block_tile_shape=Index(64, 64, 128 // bytes),
            warp_tile_shape=Index(32, 64, 64 // bytes),
            num_pipeline_stages=3 if is_small or dtype == FP8 else 5,
            num_warp_k_partitions=2,
        )
    return MatmulConfig[dtype, dtype, c_type, transpose_b](
        block_tile_shape=Index(128, 128, 128 // bytes),
        warp_tile_shape=Index(64, 64, 64 // bytes),
        num_pipeline_stages=3 if is_small or dtype == FP8 else 4,
    )


def _fits(config: MatmulConfig, columns: Int, terms: Int) -> Bool:
    """Whether a tile divides `columns` and `terms`: the kernel bounds rows only."""
    var depth = config.block_tile_shape[2] * config.num_warp_k_partitions
    return (
        columns % config.block_tile_shape[1] == 0
        and terms % depth == 0
        and terms >= depth * config.num_pipeline_stages
    )


def _last_that_fits[
    dtype: DType, c_type: DType, transpose_b: Bool
](columns: Int, terms: Int) -> Int:
    """Returns the largest tile that fits; -1 if none does."""
    for i in reversed(range(TILES)):
        if _fits(_config[dtype, c_type, transpose_b](i), columns, terms):
            return i
    return -1


def multiply[
    Store: ElementwiseEpilogueFn, //, transpose_b: Bool
](
    c: TileTensor[mut=True, ...],
    a: TileTensor[mut=False, ...],
    b: TileTensor[mut=False, ...],
    store: Store,
    ctx: DeviceContext,
) raises:
    """Hands the elements of `a @ b`, `[rows, columns]`, to `store`.

    One row goes to MAX's kernel for one, as in MAX, but of FP8; what no tile fits,
    to its slowest, which takes all.

    Parameters:
        Store: Of `store`.
        transpose_b: Whether `b` is `[columns, terms]`, not `[terms, columns]`.

    Args:
        c: Has the shape of the result, and is not touched. For FP8, of float32.
        a: The activations, `[rows, terms]`.
        b: The weight.
        store: Takes a place and what belongs there.
        ctx: Where it runs.
    """
    var rows = Int(c.dim[0]())
    if rows == 0:
        return
    comptime if a.dtype != FP8:
        if rows == 1:
            return gemv_gpu[transpose_b=transpose_b](c, a, b, store, ctx)

    comptime if a.dtype == b.dtype and a.dtype in (
        DType.bfloat16,
        DType.float32,
        FP8,
    ):
        # They are -1 where the graph does not know them: nothing fits.
        comptime columns = c.static_shape[1]
        comptime terms = a.static_shape[1]
        comptime last = _last_that_fits[a.dtype, c.dtype, transpose_b](
            columns, terms
        )
        comptime for i in range(last + 1):
            comptime config = _config[a.dtype, c.dtype, transpose_b](i)
            comptime if _fits(config, columns, terms):
                if i == last or rows <= config.block_tile_shape[0]:
                    return multistage_gemm[
                        transpose_b=transpose_b,
                        config=rebind[
                            MatmulConfig[a.dtype, b.dtype, c.dtype, transpose_b]
                        ](config),
                    ](c, a, b, store, ctx)

    enqueue_matmul_kernel_naive[
        transpose_b=transpose_b, has_epilogue_fn=True, has_compute_fn=False
    ](c, a, b, store, no_compute_fn, ctx)
