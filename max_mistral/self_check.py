"""Whether a matmul computes on this device what it should, at a model's shapes.

MAX 26.7's own is wrong in bfloat16 on Hopper for some numbers of rows
(modular/modular #6883, #6884, #7146), and right for one row, which another kernel
computes. So each row of a product is held against the same row alone, and that
against NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, ops

from .model_config import MistralConfig

ROWS = (2, 8, 9, 16, 17, 33, 41, 64, 65, 128, 129, 256)
"""How many rows a product is tried with: on both sides of a kernel's tiles."""

# The unit roundoff of what operands and results are rounded to. Of several rows
# NVIDIA's tensor cores take float32 as TF32, of 11 significant bits.
_UNITS = {DType.bfloat16: 2.0**-8, DType.float32: 2.0**-11}
# A prime, so that no two rows of a weight are alike.
_PERIOD = 1_000_003
# Narrower than any kernel's tile: what a wrong tile is off by is not averaged away.
_BLOCK = 64

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """``x [rows, terms] @ weight [columns, terms].T``, and what is fused with it."""

    columns: int
    terms: int
    then: Literal["nothing", "residual", "swiglu", "float32"] = "nothing"
    """Of what MAX makes one kernel with it: nothing, the addition of the residual,
    SwiGLU of its two halves, or the cast of the logits."""


@dataclass(frozen=True)
class Wrong:
    """A product of which some rows are wrong."""

    product: Product
    rows: int
    wrong_rows: int

    def __str__(self) -> str:
        shape = (self.rows, self.product.terms, self.product.columns)
        return f"{self.wrong_rows} of the rows for (M, K, N) = {shape}"


def products(config: MistralConfig) -> list[Product]:
    """Returns the products of a model's steps on one device, each once.

    Those of quantized weights are not among them.
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
    return list(dict.fromkeys(found))


def block_products(
    hidden: int,
    wide: int,
    queries: int,
    keys: int,
    then: Literal["residual", "nothing"] = "residual",
) -> list[Product]:
    """Returns those of a block: Q, K and V, ``o_proj``, gate and up, ``down_proj``."""
    return [
        Product(queries + 2 * keys, hidden),
        Product(hidden, queries, then),
        Product(2 * wide, hidden, "swiglu"),
        Product(hidden, wide, then),
    ]


def check_graph(products: Sequence[Product], dtype: DType, device: DeviceRef) -> Graph:
    """Returns a graph of all products, for any number of rows.

    Its inputs are each product's ``x``, ``weight`` and ``[rows, columns]`` residual
    if it has one. One graph, since each compiles for a minute or more.

    Args:
        products: What it computes.
        dtype: Of operands and results.
        device: Where.
    """
    types = [
        TensorType(dtype, [*shape], device)
        for product in products
        for shape in shapes(product, "rows")
    ]
    with Graph("self_check", input_types=types) as graph:
        inputs = iter([value.tensor for value in graph.inputs])
        results = []
        for product in products:
            x, weight, *residual = (next(inputs) for _ in shapes(product, "rows"))
            y = x @ weight.T
            if product.then == "residual":
                y = residual[0] + y
            elif product.then == "swiglu":
                gate, up = ops.split(y, [product.columns // 2] * 2, axis=1)
                y = ops.silu(gate) * up
            elif product.then == "float32":
                y = ops.cast(y, DType.float32)
            results.append(y)
        graph.output(*results)
    return graph


def wrong_products(
    session: InferenceSession,
    device: Device,
    products: Sequence[Product],
    dtype: DType,
) -> list[Wrong]:
    """Returns the products that are wrong, with the numbers of rows.

    Holds their weights, random ones, in the device's memory meanwhile.

    Args:
        session: Compiles them, with the matmul that it is configured for.
        device: Where.
        products: Which.
        dtype: Of operands and results.
    """
    if not products:  # a quantized model without a head
        return []
    graph = check_graph(products, dtype, DeviceRef.from_device(device))
    model = session.load(graph)
    draws = np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32)
    operands = [_Operands.of(product, draws, dtype, device) for product in products]
    single = [_run(model, operands, row, row + 1) for row in range(max(ROWS))]
    alone = [np.concatenate(rows) for rows in zip(*single, strict=True)]
    found = []
    for product, operand, by_itself in zip(products, operands, alone, strict=True):
        off = _off(by_itself[:, operand.sample], operand.expected)
        found += _wrong(product, 1, off, dtype)
    for rows in ROWS:
        together = _run(model, operands, 0, rows)
        for product, many, by_itself in zip(products, together, alone, strict=True):
            found += _wrong(product, rows, _off(many, by_itself[:rows]), dtype)
    return found


@dataclass(frozen=True)
class _Operands:
    x: Buffer
    weight: Buffer
    residual: list[Buffer]
    """One, if the product has it."""
    sample: slice
    """The columns of the result that are known."""
    expected: Array
    """These, by NumPy."""

    @classmethod
    def of(
        cls, product: Product, draws: Array, dtype: DType, device: Device
    ) -> _Operands:
        # Results of about 1, so that SwiGLU's silu is where models have it.
        smaller = draws / np.float32(np.sqrt(product.terms))
        x_shape, weight_shape, *residual_shape = shapes(product, max(ROWS))
        x = np.resize(encode(smaller, dtype), x_shape)
        weight, *residual = (
            np.resize(encode(draws, dtype), shape)
            for shape in (weight_shape, *residual_shape)
        )
        width = product.columns // (2 if product.then == "swiglu" else 1)
        sample = slice(max(0, width - _BLOCK), width)
        # Of SwiGLU, the same columns of both halves.
        halves = weight.reshape(-1, width, product.terms)[:, sample]
        first, *second = (_decode(x) @ _decode(half).T for half in halves)
        expected = first
        if residual:
            expected = _decode(residual[0])[:, sample] + first
        if second:
            expected = first / (1 + np.exp(-first)) * second[0]
        x_buffer, weight_buffer, *residuals = (
            Buffer.from_numpy(raw).view(dtype, raw.shape).to(device)
            for raw in (x, weight, *residual)
        )
        return cls(x_buffer, weight_buffer, residuals, sample, expected)


def shapes(product: Product, rows: Any) -> list[tuple[Any, ...]]:
    """Returns those of ``x``, the weight and, if there is one, the residual."""
    shapes = [(rows, product.terms), (product.columns, product.terms)]
    residual = [(rows, product.columns)] if product.then == "residual" else []
    return shapes + residual


def _run(
    model: Model, operands: Sequence[_Operands], first: int, end: int
) -> list[Array]:
    """Returns the results for some of the rows."""
    inputs: list[Buffer] = []
    for operand in operands:
        inputs += [operand.x[first:end, :], operand.weight]
        inputs += [buffer[first:end, :] for buffer in operand.residual]
    outputs = model.execute(*inputs)
    return [
        _decode(
            output.to_numpy()
            if output.dtype == DType.float32
            else output.view(DType.uint16, output.shape).to_numpy()
        )
        for output in outputs
    ]


def _off(found: Array, wanted: Array) -> Array:
    """Returns the root mean square of the difference, ``[rows, blocks of columns]``.

    Relative to that of everything wanted.
    """
    squares = np.square(found - wanted)
    starts = np.arange(0, squares.shape[1], _BLOCK)
    sizes = np.diff(np.append(starts, squares.shape[1]))
    blocks = np.add.reduceat(squares, starts, axis=1) / sizes
    off: Array = np.sqrt(blocks / np.square(wanted).mean())
    return off


def _wrong(product: Product, rows: int, off: Array, dtype: DType) -> list[Wrong]:
    """Returns the product if it is off by more than rounding explains.

    A sum is rounded to ``dtype`` once, and where MAX splits it into up to eight and
    adds these up, not more than 16 times; both of the results compared. SwiGLU of
    normal values multiplies a relative error by at most 3: (1.1 + 0.6) / 0.6, where
    1.1 is the steepest slope of silu, and 0.6 the size of its values. What has
    nothing to do with the operands is off by 1 or more, not by 1/8 or 3/8.
    """
    allowed = 2 * 16 * _UNITS[dtype] * (3 if product.then == "swiglu" else 1)
    # Not "off > allowed", which NaN would pass.
    wrong_rows = int((~(off <= allowed)).any(axis=1).sum())
    return [Wrong(product, rows, wrong_rows)] if wrong_rows else []


def encode(values: Array, dtype: DType) -> npt.NDArray[Any]:
    """Returns values cut to ``dtype``, in what NumPy has for it."""
    if dtype == DType.float32:
        return values
    # NumPy has no bfloat16: the upper half of a float32.
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _decode(raw: npt.NDArray[Any]) -> Array:
    """Returns what :func:`encode` made, as float32."""
    if raw.dtype == np.float32:
        return raw
    return (raw.astype(np.uint32) << 16).view(np.float32)
