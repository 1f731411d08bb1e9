"""Which matmuls a model's steps are made of, and a graph of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops
from max.nn.kernels import dynamic_scaled_matmul
from max.nn.quant_config import (
    InputScaleSpec,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)

from .model_config import MistralConfig

Fused = Literal["nothing", "residual", "swiglu", "float32"]


@dataclass(frozen=True)
class Product:
    """``x [rows, terms] @ weight [columns, terms].T``, and what is fused with it."""

    columns: int
    terms: int
    then: Fused = "nothing"
    """Of what MAX makes one kernel with it: nothing, the addition of the residual,
    SwiGLU of its two halves, or the cast of the logits."""
    fp8: bool = False
    """Whether ``x`` and the weight are float8_e4m3fn, with a scale for each row."""


class Operand(NamedTuple):
    """What a product takes."""

    dtype: DType
    shape: tuple[Any, ...]
    is_weight: bool = False
    """Whether it is the same for any number of rows of ``x``, not a row for each."""


def products(config: MistralConfig) -> list[Product]:
    """Returns the products of a model's steps on one device, each once.

    Of those of quantized weights, only what runs on our kernels; see
    :attr:`WeightFormat.needs_own_matmul`.
    """
    degree = config.sharing.tensor_parallel_degree
    hidden, wide = config.hidden_size, config.feed_forward_length // degree
    queries = config.num_attention_heads * config.head_dim // degree
    keys = config.sharing.total_kv_heads * config.head_dim // degree
    # Where devices share a replica, their sums are added up first.
    then: Literal["residual", "nothing"] = "residual" if degree == 1 else "nothing"
    vocabulary = -(-config.vocab_size // degree)
    found = [] if config.embeds else [Product(vocabulary, hidden, "float32")]
    if config.quantization is None:
        found += block_products(hidden, wide, queries, keys, then)
    elif config.needs_own_matmul:
        found += block_products(hidden, wide, queries, keys, fp8=True)
    return list(dict.fromkeys(found))


def block_products(
    hidden: int,
    wide: int,
    queries: int,
    keys: int,
    then: Literal["residual", "nothing"] = "residual",
    *,
    fp8: bool = False,
) -> list[Product]:
    """Returns those of a block: Q, K and V, ``o_proj``, gate and up, ``down_proj``."""
    shapes = [(queries + 2 * keys, hidden), (hidden, queries)]
    shapes += [(2 * wide, hidden), (hidden, wide)]
    if fp8:  # with which nothing is fused
        return [Product(*shape, fp8=True) for shape in shapes]
    fused: list[Fused] = ["nothing", then, "swiglu", then]
    return [Product(*shape, each) for shape, each in zip(shapes, fused, strict=True)]


def operands_of(product: Product, rows: Any, dtype: DType) -> list[Operand]:
    """Returns what a product takes.

    ``x`` and the weight; then, if it has them, the residual, or float32 scales
    ``[rows]`` of ``x`` and ``[columns]`` of the weight.

    Args:
        product: Which.
        rows: How many, or the name of a dimension.
        dtype: Of what is not FP8.
    """
    of = DType.float8_e4m3fn if product.fp8 else dtype
    found = [
        Operand(of, (rows, product.terms)),
        Operand(of, (product.columns, product.terms), is_weight=True),
    ]
    if product.then == "residual":
        found.append(Operand(dtype, (rows, product.columns)))
    if product.fp8:
        found.append(Operand(DType.float32, (rows,)))
        found.append(Operand(DType.float32, (product.columns,), is_weight=True))
    return found


def check_graph(products: Sequence[Product], dtype: DType, device: DeviceRef) -> Graph:
    """Returns a graph of all products, for any number of rows.

    Its inputs are the :func:`operands_of` each. One graph, since each compiles for a
    minute or more.

    Args:
        products: What it computes.
        dtype: Of operands that are not FP8, and of results.
        device: Where.
    """
    types = [
        TensorType(operand.dtype, [*operand.shape], device)
        for product in products
        for operand in operands_of(product, "rows", dtype)
    ]
    with Graph("self_check", input_types=types) as graph:
        inputs = iter([value.tensor for value in graph.inputs])
        results = []
        for product in products:
            operands = [next(inputs) for _ in operands_of(product, "rows", dtype)]
            results.append(_result(product, *operands))
        graph.output(*results)
    return graph


def _result(
    product: Product, x: TensorValue, weight: TensorValue, *others: TensorValue
) -> TensorValue:
    """Returns what a product's operands give."""
    if product.fp8:
        row_scales, column_scales = others
        return dynamic_scaled_matmul(
            x,
            weight,
            row_scales.reshape([1, -1]),  # [rows] -> [1, rows]
            column_scales.reshape([-1, 1]),  # [columns] -> [columns, 1]
            InputScaleSpec(
                ScaleGranularity.COLWISE, ScaleOrigin.DYNAMIC, DType.float32
            ),
            WeightScaleSpec(ScaleGranularity.ROWWISE, DType.float32),
        )
    y = x @ weight.T
    if product.then == "residual":
        y = others[0] + y
    elif product.then == "swiglu":
        gate, up = ops.split(y, [product.columns // 2] * 2, axis=1)
        y = ops.silu(gate) * up
    elif product.then == "float32":
        y = ops.cast(y, DType.float32)
    return y
