"""MAX's FP8 matmul ops on tensor cores, where MAX has none for them.

MAX 26.7's own kernels use them on datacenter Blackwell only.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from layout import Coord, TileTensor, coord_to_index_list
from linalg.utils import ElementwiseEpilogueFn
from max.gpu.host import DeviceContext
from std.utils import IndexList

from .tiles import multiply


def _multiply[
    Store: ElementwiseEpilogueFn, //
](
    c: OutputTensor[rank=2, ...],
    a: InputTensor[rank=2, ...],
    b: InputTensor[rank=2, ...],
    store: Store,
    ctx: DeviceContext,
) raises:
    """Hands the float32 elements of `a @ b.T` to `store`."""
    var tile = c.to_tile_tensor[.int64]()
    # The kernel asks for a result in float32, whose memory it does not touch.
    var wide = TileTensor(tile.ptr.unsafe_bitcast[Float32](), tile.layout)
    multiply[transpose_b=True](
        wide, a.to_tile_tensor[.int64](), b.to_tile_tensor[.int64](), store, ctx
    )


@extensibility.register("mo.matmul_dynamic_scaled_fp8", type="gpu", api="cuda")
struct MatmulDynamicScaledFP8:
    """Takes the place of MAX's own for scales that belong to rows."""

    @staticmethod
    def execute[
        input_scale_granularity: StaticString,
        weight_scale_granularity: StaticString,
        m_scale_granularity: Int,
        n_scale_granularity: Int,
        k_scale_granularity: Int,
        target: StaticString,
    ](
        c: OutputTensor[rank=2, ...],
        a: InputTensor[rank=2, ...],
        b: InputTensor[rank=2, ...],
        a_scales: InputTensor[rank=2, ...],
        b_scales: InputTensor[rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Writes `c`, `[rows, columns]`, from FP8 and float32.

        Parameters:
            input_scale_granularity: What has one scale: a row of `a`.
            weight_scale_granularity: The same of `b`.
            m_scale_granularity: -1: there are no blocks.
            n_scale_granularity: -1.
            k_scale_granularity: -1.
            target: The GPU.

        Args:
            c: The result.
            a: The activations, `[rows, terms]`.
            b: The weight, `[columns, terms]`.
            a_scales: `[1, rows]`.
            b_scales: `[columns, 1]`.
            ctx: Where it runs.
        """
        comptime assert k_scale_granularity == -1, "no blocks of scales"
        var result = c.to_tile_tensor[.int64]()
        var row_scales = a_scales.to_tile_tensor[.int64]()
        var column_scales = b_scales.to_tile_tensor[.int64]()

        @inline(.always)
        def store[
            dtype: DType, width: SIMDLength, *, alignment: Int
        ](place: Coord, value: SIMD[dtype, width]) {
            var result, var row_scales, var column_scales
        }:
            var at = rebind[IndexList[2]](coord_to_index_list(place))
            var column = column_scales.ptr.unsafe_load[width=width](at[1])
            var row = row_scales.ptr.unsafe_load(at[0])
            var scaled = value.cast[DType.float32]() * column.cast[DType.float32]()
            scaled *= row.cast[DType.float32]()
            result.store[width=width](place, scaled.cast[result.dtype]())

        _multiply(c, a, b, store, ctx)


@extensibility.register("mo.matmul_static_scaled_float8", type="gpu", api="cuda")
struct MatmulStaticScaledFP8:
    """Takes the place of MAX's own, with one scale for each operand."""

    @staticmethod
    def execute[
        scale_type: DType, target: StaticString
    ](
        c: OutputTensor[rank=2, ...],
        a: InputTensor[rank=2, ...],
        b: InputTensor[rank=2, ...],
        a_scale: Scalar[scale_type],
        b_scale: Scalar[scale_type],
        ctx: DeviceContext,
    ) raises:
        """Writes `c`, `[rows, columns]`, from FP8.

        Parameters:
            scale_type: Of the scales.
            target: The GPU.

        Args:
            c: The result.
            a: The activations, `[rows, terms]`.
            b: The weight, `[columns, terms]`.
            a_scale: Of all of `a`.
            b_scale: Of all of `b`.
            ctx: Where it runs.
        """
        var result = c.to_tile_tensor[.int64]()
        var scale = a_scale.cast[DType.float32]() * b_scale.cast[DType.float32]()

        @inline(.always)
        def store[
            dtype: DType, width: SIMDLength, *, alignment: Int
        ](place: Coord, value: SIMD[dtype, width]) {var result, var scale}:
            var scaled = value.cast[DType.float32]() * scale
            result.store[width=width](place, scaled.cast[result.dtype]())

        _multiply(c, a, b, store, ctx)
