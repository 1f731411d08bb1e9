"""MAX's matmul op on its multistage GEMM, where another kernel of MAX's is wrong."""

import extensibility
from extensibility import InputTensor
from extensibility import _FusedComputeOutputTensor as FusedComputeOutputTensor
from layout import Coord, TileTensor, coord_to_index_list
from linalg.gemv import gemv_gpu
from linalg.matmul.gpu import enqueue_matmul_kernel_naive, multistage_gemm
from linalg.utils import ElementwiseEpilogueFn, no_compute_fn
from linalg.utils_gpu import MatmulConfig
from max.gpu.host import DeviceContext
from std.utils import Index, IndexList

# Those of MAX's table for an A100 at a 7B's shapes, up to 16, 64 and more rows.
comptime TILES = 3


def _config[
    dtype: DType, transpose_b: Bool
](tile: Int) -> MatmulConfig[dtype, dtype, dtype, transpose_b]:
    """Returns a tile's shape, smallest first."""
    comptime if dtype == DType.float32:
        # As TF32; only the last: their bytes would not fit.
        return MatmulConfig[dtype, dtype, dtype, transpose_b](
            block_tile_shape=Index(128, 128, 16),
            warp_tile_shape=Index(64, 64, 16),
            num_pipeline_stages=4,
        )
    if tile == 0:
        return MatmulConfig[dtype, dtype, dtype, transpose_b](
            block_tile_shape=Index(16, 64, 128),
            warp_tile_shape=Index(16, 32, 32),
            num_pipeline_stages=4,
            num_warp_k_partitions=2,
        )
    if tile == 1:
        return MatmulConfig[dtype, dtype, dtype, transpose_b](
            block_tile_shape=Index(64, 64, 64),
            warp_tile_shape=Index(32, 64, 32),
            num_pipeline_stages=5,
            num_warp_k_partitions=2,
        )
    return MatmulConfig[dtype, dtype, dtype, transpose_b](
        block_tile_shape=Index(128, 128, 64),
        warp_tile_shape=Index(64, 64, 32),
        num_pipeline_stages=4,
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
    dtype: DType, transpose_b: Bool
](columns: Int, terms: Int) -> Int:
    """Returns the largest tile that fits; -1 if none does."""
    for i in reversed(range(TILES)):
        if _fits(_config[dtype, transpose_b](i), columns, terms):
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

    One row goes to MAX's kernel for one, as in MAX; what no tile fits, to its
    slowest, which takes all.

    Parameters:
        Store: Of `store`.
        transpose_b: Whether `b` is `[columns, terms]`, not `[terms, columns]`.

    Args:
        c: Has the shape of the result.
        a: The activations, `[rows, terms]`.
        b: The weight.
        store: Takes a place and what belongs there.
        ctx: Where it runs.
    """
    var rows = Int(c.dim[0]())
    if rows == 0:
        return
    if rows == 1:
        return gemv_gpu[transpose_b=transpose_b](c, a, b, store, ctx)

    comptime if a.dtype == b.dtype and a.dtype in (
        DType.bfloat16,
        DType.float32,
    ):
        # They are -1 where the graph does not know them: nothing fits.
        comptime columns = c.static_shape[1]
        comptime terms = a.static_shape[1]
        comptime last = _last_that_fits[a.dtype, transpose_b](columns, terms)
        comptime for i in range(last + 1):
            comptime config = _config[a.dtype, transpose_b](i)
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


@extensibility.register("mo.matmul", type="gpu", api="cuda")
struct Matmul:
    """Takes the place of MAX's own, with what the graph fuses with it."""

    @staticmethod
    def execute[
        transpose_b: Bool,
        packed_b: Bool,
        has_epilogue_fusion: Bool,
        target: StaticString,
        _trace_name: StaticString,
    ](
        c: FusedComputeOutputTensor[rank=2, ...],
        a: InputTensor[rank=2, ...],
        b: InputTensor[rank=2, ...],
        ctx: DeviceContext,
    ) capturing raises:
        """Writes `c`, `[rows, columns]`, from `a`, `[rows, terms]`, and `b`.

        Parameters:
            transpose_b: Whether `b` is `[columns, terms]`, not `[terms, columns]`.
            packed_b: Whether `b` is laid out for a CPU; it is not.
            has_epilogue_fusion: Whether more is computed from each element.
            target: The GPU.
            _trace_name: For a profiler.

        Args:
            c: The result.
            a: The activations.
            b: The weight.
            ctx: Where it runs.
        """
        comptime assert not packed_b, "a GPU's weights are not packed"

        @inline(.always)
        def store[
            dtype: DType, width: SIMDLength, *, alignment: Int
        ](place: Coord, value: SIMD[dtype, width]) {var c}:
            var at = rebind[IndexList[2]](coord_to_index_list(place))
            var element = rebind[SIMD[c.dtype, width]](value)
            comptime if type_of(c)._has_compute_fusion:
                element = c._fused_compute_output_lambda[
                    element_alignment=alignment
                ](at, element)
            comptime if has_epilogue_fusion and not type_of(
                c
            )._has_compute_fusion:
                c._lambda_store[width=width, element_alignment=alignment](
                    at, element
                )
            else:
                c.store[element_alignment=alignment](at, element)

        multiply[transpose_b](
            c.to_tile_tensor[.int64](),
            a.to_tile_tensor[.int64](),
            b.to_tile_tensor[.int64](),
            store,
            ctx,
        )
