"""MAX's matmul op on its multistage GEMM, where another kernel of MAX's is wrong."""

import extensibility
from extensibility import InputTensor
from extensibility import _FusedComputeOutputTensor as FusedComputeOutputTensor
from layout import Coord, coord_to_index_list
from max.gpu.host import DeviceContext
from std.utils import IndexList

from .tiles import multiply


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
