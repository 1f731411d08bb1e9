"""Which matmuls a model's steps are made of, and a graph of them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops
from max.nn.kernels import dynamic_scaled_matmul, matmul_static_scaled_float8
from max.nn.quant_config import (
    InputScaleSpec,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from max.pipelines.lib import PipelineConfig

from ..formats import FP8
from ..formats.base import is_projection
from ..graph_config import GraphConfig
from ..weights.names import expected_tensors, find_scheme, find_text_tower
from ..weights.safetensors_file import read_tensors

Fused = Literal["nothing", "swiglu", "float32"]


@dataclass(frozen=True)
class Product:
    """``x [rows, terms] @ weight [columns, terms].T``, and what is fused with it."""

    columns: int
    terms: int
    then: Fused = "nothing"
    """What follows it: nothing, SwiGLU of its two halves, or the cast of the logits."""
    fp8: bool = False
    """Whether ``x`` and the weight are float8_e4m3fn, with a scale for each row."""
    static: bool = False
    """Of FP8, whether ``x`` has one scale instead, and the weight another."""
    is_head: bool = False
    """Whether it runs on a row for each request, not for each token."""


class Operand(NamedTuple):
    """What a product takes."""

    dtype: DType
    shape: tuple[Any, ...]
    is_weight: bool = False
    """Whether it is the same for any number of rows of ``x``, not a row for each."""


def products(config: GraphConfig, *, some_dense: bool = False) -> list[Product]:
    """Returns the products of a model's steps on one device, each once.

    Of those of quantized weights, only what runs on our kernels; see
    :attr:`WeightFormat.needs_own_matmul`.

    Args:
        config: The model's; need not be finalized.
        some_dense: What :func:`leaves_some_dense` says of its checkpoint.
    """
    degree = config.sharing.tensor_parallel_degree
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim // degree
    keys = config.sharing.total_kv_heads * config.head_dim // degree
    found = []
    if not config.embeds:
        # Logits of several devices are gathered before they are cast.
        then: Fused = "float32" if degree == 1 else "nothing"
        for vocabulary in _parts(config.vocab_size, degree):
            found.append(Product(vocabulary, hidden, then, is_head=True))
    quantization = config.quantization
    static = isinstance(quantization, FP8) and quantization.static
    for wide in _parts(config.feed_forward_length, degree):
        sizes = (hidden, wide, queries, keys)
        if quantization is None or some_dense:
            found += block_products(*sizes)
        if config.needs_own_matmul:
            found += block_products(*sizes, fp8=True, static=static)
    return list(dict.fromkeys(found))


def _parts(size: int, degree: int) -> list[int]:
    """Returns how large the parts of devices are: the first ones may have one more."""
    smallest, left = divmod(size, degree)
    return [smallest + 1, smallest] if left else [smallest]


def leaves_some_dense(pipeline_config: PipelineConfig) -> bool:
    """Whether a checkpoint has projections that are not quantized.

    By the headers of its safetensors files.

    Raises:
        UserError: (a ``ValueError``) if one is not complete.
    """
    model = pipeline_config.model
    tensors = read_tensors(model.resolved_weight_paths())
    config = model.huggingface_config
    assert config is not None  # or its MistralConfig would not be
    expected = expected_tensors(
        config,
        find_scheme(tensors, config),
        tied=False,
        tower=find_text_tower(tensors),
    )
    return any(
        is_projection(tensor.graph) and tensors[name].dtype in ("BF16", "F16", "F32")
        for name, tensor in expected.items()
        if name in tensors  # packed weights have another name
    )


def block_products(
    hidden: int,
    wide: int,
    queries: int,
    keys: int,
    *,
    fp8: bool = False,
    static: bool = False,
) -> list[Product]:
    """Returns those of a block: Q, K and V, ``o_proj``, gate and up, ``down_proj``.

    Nothing is added to what ``o_proj`` and ``down_proj`` give before their kernel
    ends: the next norm's does it (see :func:`.layers.block.carries_delta`), and where
    devices share a replica, their sums are added up first.

    Args:
        hidden: The hidden size.
        wide: Of the MLP, on one device.
        queries: The width of all heads of one device.
        keys: The width of its key-value heads.
        fp8: Whether they are in FP8.
        static: Whether the activations have a scale that is stored.
    """
    qkv, output = (queries + 2 * keys, hidden), (hidden, queries)
    gate_up, down = (2 * wide, hidden), (hidden, wide)
    if not fp8:
        gated = Product(*gate_up, "swiglu")
        return [Product(*qkv), Product(*output), gated, Product(*down)]
    if not static:
        return [Product(*s, fp8=True) for s in (qkv, output, gate_up, down)]
    # Q, K and V have a scale each, which is spread over the rows. Gate and up are
    # one product if they have the same, which only the weights say.
    rest = (output, gate_up, (wide, hidden), down)
    whole = [Product(*s, fp8=True, static=True) for s in rest]
    return [Product(*qkv, fp8=True), *whole]


def operands_of(product: Product, rows: Any, dtype: DType) -> list[Operand]:
    """Returns what a product takes.

    ``x`` and the weight; then, if it has them, float32 scales ``[rows]`` of ``x`` and
    ``[columns]`` of the weight.

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
    if product.fp8 and not product.static:
        found.append(Operand(DType.float32, (rows,)))
        found.append(Operand(DType.float32, (product.columns,), is_weight=True))
    return found


def static_scales(product: Product) -> tuple[float, float]:
    """Returns the scales of ``x`` and of the weight, where each has one.

    With normal values the results are of about 1.
    """
    return 1.25 / math.sqrt(product.terms), 0.75


def check_graph(
    products: Sequence[Product], dtype: DType, *devices: DeviceRef
) -> Graph:
    """Returns a graph of all products, for any number of rows.

    Its inputs are the :func:`operands_of` each product on each device; its outputs
    are in the same order. One graph, since each compiles for a minute or more.
    Devices may have different rows, and a head other rows than the rest.

    Args:
        products: What it computes.
        dtype: Of operands that are not FP8, and of results.
        devices: Where; each computes all of them.
    """
    placed = [(product, i) for product in products for i in range(len(devices))]
    operands = [operands_of(each, _rows_of(each, i), dtype) for each, i in placed]
    types = [
        TensorType(operand.dtype, [*operand.shape], devices[i])
        for (_, i), taken in zip(placed, operands, strict=True)
        for operand in taken
    ]
    with Graph("self_check", input_types=types) as graph:
        inputs = iter([value.tensor for value in graph.inputs])
        graph.output(
            *(
                _result(product, *(next(inputs) for _ in taken))
                for (product, _), taken in zip(placed, operands, strict=True)
            )
        )
    return graph


def _rows_of(product: Product, device: int) -> str:
    """Returns the name of a dimension."""
    return f"requests_{device}" if product.is_head else f"rows_{device}"


def _result(
    product: Product, x: TensorValue, weight: TensorValue, *others: TensorValue
) -> TensorValue:
    """Returns what a product's operands give."""
    if product.static:
        # Where the kernel takes them from, which is not the GPU.
        scales = [
            ops.constant(scale, DType.float32, DeviceRef.CPU())
            for scale in static_scales(product)
        ]
        return matmul_static_scaled_float8(x, weight, *scales)
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
    if product.then == "swiglu":
        gate, up = ops.split(y, [product.columns // 2] * 2, axis=1)
        y = ops.silu(gate) * up
    elif product.then == "float32":
        y = ops.cast(y, DType.float32)
    return y
