"""The self-check of GPUs: on a CPU, with faults such as a GPU's."""

import ml_dtypes
import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_mistral.gpu_matmul.products import (
    Product,
    check_graph,
    operands_of,
    static_scales,
)
from max_mistral.gpu_matmul.self_check import allowed, rows_to_try, wrong_products

PRODUCTS = [
    Product(256, 96),
    Product(320, 96, "swiglu"),
    Product(136, 96, "float32", is_head=True),
]
ROWS = rows_to_try()
ALONE = 257  # how many different rows there are


def nothing(result, alone):
    """A right product."""


def late_rows(result, alone):
    """modular/modular #6883: the first rows are right, and the rest garbage."""
    if not alone:
        result[8:] = np.roll(result[8:], 1, axis=1)


def one_tile(result, alone):
    if not alone:
        result[64:, 64:128] *= -1


def not_a_number(result, alone):
    if not alone:
        result[40:41, 3] = np.nan


def large_tile(result, alone):
    """Where MAX chooses another tile, its first rows are right."""
    if len(result) > 1024:
        result[8:] = np.roll(result[8:], 1, axis=1)


def last_row(result, alone):
    if len(result) > 1024:
        result[-1] *= -1


def tiles_in_each_others_place(result, alone):
    if len(result) >= 512:
        result[:512] = np.roll(result[:512], 256, axis=0)


def not_written():
    """A row that keeps what was there before."""
    before = {}

    def fault(result, alone):
        if not alone:
            width, row = result.shape[1], result[1].copy()
            result[1] = before.get(width, row)
            before[width] = row

    return fault


def every_row(result, alone):
    """Each row is what it is alone, and that is not what it should be."""
    result *= 3


class Faulty:
    """A session whose models' results a fault has spoilt."""

    def __init__(self, model, fault):
        self.model, self.fault = model, fault

    def load(self, graph):
        return self

    def execute(self, *inputs):
        return [self._spoilt(buffer) for buffer in self.model.execute(*inputs)]

    def _spoilt(self, buffer):
        is_float32 = buffer.dtype == DType.float32
        raw = buffer if is_float32 else buffer.view(DType.uint16, buffer.shape)
        # A view of the buffer's own memory.
        result = raw.to_numpy()
        self.fault(
            result if is_float32 else result.view(ml_dtypes.bfloat16),
            alone=len(result) == 1,
        )
        return buffer


@pytest.fixture(scope="module")
def model():
    graph = check_graph(PRODUCTS, DType.bfloat16, DeviceRef.CPU())
    return InferenceSession(devices=[CPU()]).load(graph)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (nothing, []),
        (late_rows, [(rows, rows - 8) for rows in ROWS if rows > 8]),
        (one_tile, [(rows, rows - 64) for rows in ROWS if rows > 64]),
        (not_a_number, [(rows, 1) for rows in ROWS if rows > 40]),
        (large_tile, [(rows, rows - 8) for rows in ROWS if rows > 1024]),
        (last_row, [(rows, 1) for rows in ROWS if rows > 1024]),
        (tiles_in_each_others_place, [(rows, 512) for rows in ROWS if rows >= 512]),
        (not_written(), [(rows, 1) for rows in ROWS[1:]]),
        (every_row, [(1, ALONE)]),
    ],
)
def test_what_is_wrong_is_found(model, fault, wrong):
    found = wrong_products(Faulty(model, fault), [CPU()], PRODUCTS, DType.bfloat16)
    for product in PRODUCTS:
        most = ALONE if product.is_head else max(ROWS)
        assert of(found, product) == [each for each in wrong if each[0] <= most]


def of(found, product):
    """Returns for how many rows how many of a product are wrong."""
    return [(each.rows, each.wrong_rows) for each in found if each.product == product]


def test_the_numbers_of_rows():
    assert {*range(8, 257, 8), 384, 512, 768, 1024, 2048} < set(ROWS)
    assert rows_to_try(4000) == [*ROWS, 4000]
    assert rows_to_try(100_000) == [*ROWS, 8192]
    assert rows_to_try(1) == rows_to_try(None, None) == ROWS
    assert rows_to_try(4000, 300) == sorted([*ROWS, 300, 4000])


def test_a_steps_most_rows_are_tried(model):
    def longest(result, alone):
        if len(result) == 3000:
            result[-5:] *= -1

    model = Faulty(model, longest)
    found = wrong_products(model, [CPU()], PRODUCTS, DType.bfloat16, 3000)
    assert [(each.product, each.rows, each.wrong_rows) for each in found] == [
        (product, 3000, 5) for product in PRODUCTS if not product.is_head
    ]


def test_a_head_is_tried_with_as_many_rows_as_it_runs_on(model):
    """MAX takes up to 512 requests at a time, and echo has a row of each token."""

    def many(result, alone):
        if len(result) > 300:
            result[-1] *= -1

    head = next(product for product in PRODUCTS if product.is_head)
    for requests, wrong in ((None, []), (8, []), (400, [(384, 1), (400, 1)])):
        found = wrong_products(
            Faulty(model, many), [CPU()], PRODUCTS, DType.bfloat16, None, requests
        )
        assert of(found, head) == wrong


def test_every_device_is_checked():
    """The second of them gives garbage."""
    devices = [CPU(), CPU()]
    graph = check_graph(PRODUCTS, DType.bfloat16, *[DeviceRef.CPU()] * 2)
    model = InferenceSession(devices=[CPU()]).load(graph)

    class SecondIsFaulty(Faulty):
        def execute(self, *inputs):
            outputs = self.model.execute(*inputs)
            return [self._spoilt(y) if i % 2 else y for i, y in enumerate(outputs)]

    faulty = SecondIsFaulty(model, late_rows)
    found = wrong_products(faulty, devices, PRODUCTS, DType.bfloat16)
    few = [rows for rows in ROWS if 8 < rows < ALONE]
    assert {each.device for each in found} == {1}
    for product in PRODUCTS:
        assert of(found, product) == [(rows, rows - 8) for rows in few]
    assert str(found[0]).endswith(", on the model's GPU number 2,")
    assert not wrong_products(Faulty(model, nothing), devices, PRODUCTS, DType.bfloat16)


class InNumPy:
    """A session whose models' products are NumPy's: a CPU has no kernel for FP8."""

    def __init__(self, products, wrong_scale=False, short=lambda rows: False):
        self.products, self.wrong_scale, self.short = products, wrong_scale, short
        self.weights = {}

    def load(self, graph):
        return self

    def execute(self, *inputs):
        inputs = iter(inputs)
        results = []
        for product in self.products:
            count = len(operands_of(product, 1, DType.bfloat16))
            results.append(
                self._product(product, *(next(inputs) for _ in range(count)))
            )
        return results

    def _product(self, product, x, weight, *scales):
        if product not in self.weights:
            self.weights[product] = array(weight)
        x, weight = array(x), self.weights[product]
        if self.short(len(x)):
            x = x[:, :-64]
        y = x @ weight[:, : x.shape[1]].T
        if product.fp8:
            rows, columns = static_scales(product)
            columns = np.full(len(weight), columns)
            if not product.static:
                rows, columns = (buffer.to_numpy() for buffer in scales)
                rows = rows[:, None]
            if self.wrong_scale:
                columns = columns * 2 if product.static else np.roll(columns, 1)
            y = y * rows * columns
        elif product.then == "swiglu":
            gate, up = np.split(y, 2, axis=1)
            y = gate / (1 + np.exp(-gate)) * up
        y = y.astype(ml_dtypes.bfloat16)
        return Buffer.from_numpy(y.view(np.uint16)).view(DType.bfloat16, y.shape)


def array(buffer):
    """Returns a buffer of bfloat16 or FP8 as float32."""
    if buffer.dtype == DType.bfloat16:
        raw = buffer.view(DType.uint16, buffer.shape).to_numpy()
        return raw.view(ml_dtypes.bfloat16).astype(np.float32)
    raw = buffer.view(DType.uint8, buffer.shape).to_numpy()
    return raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


# Of a 7B model's gate and up, of a 123B's ``down_proj``, and of a 7B's in FP8. As
# heads, for more than 256 rows take time.
DEEP = [
    Product(128, 4096, "swiglu", is_head=True),
    Product(64, 28672, is_head=True),
    Product(64, 14336, fp8=True, is_head=True),
    Product(64, 14336, fp8=True, static=True, is_head=True),
]


def test_terms_that_are_left_out_are_found():
    """The last 64: a step of a kernel's."""

    def found(short):
        wrong = wrong_products(
            InNumPy(DEEP, short=short), [CPU()], DEEP, DType.bfloat16
        )
        assert all(each.wrong_rows >= each.rows // 2 for each in wrong)
        return [(each.product, each.rows) for each in wrong]

    assert found(lambda rows: False) == []
    assert found(lambda rows: True) == [(product, 1) for product in DEEP]
    counts = [rows for rows in ROWS if rows <= ALONE]
    assert found(lambda rows: rows > 1) == [(p, n) for n in counts for p in DEEP]


def test_rounding_is_allowed_by_the_dtype():
    product = Product(64, 4096)
    assert allowed(product, DType.float32) == allowed(product, DType.bfloat16) / 8
    assert allowed(product, DType.bfloat16) < 1 / 32


FP8_PRODUCTS = [
    Product(256, 96, fp8=True),
    Product(320, 160, fp8=True),
    Product(128, 96, fp8=True, static=True),
]


def test_another_scale_is_found():
    model = InNumPy(FP8_PRODUCTS, wrong_scale=True)
    found = wrong_products(model, [CPU()], FP8_PRODUCTS, DType.bfloat16)
    assert [(each.product, each.rows) for each in found] == [
        (product, 1) for product in FP8_PRODUCTS
    ]
    # By chance a row's difference may be small.
    assert all(each.wrong_rows > 0.9 * ALONE for each in found)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (nothing, []),
        (late_rows, [(rows, rows - 8) for rows in ROWS if rows > 8]),
    ],
)
def test_what_is_wrong_in_fp8_is_found(fault, wrong):
    model = Faulty(InNumPy(FP8_PRODUCTS), fault)
    found = wrong_products(model, [CPU()], FP8_PRODUCTS, DType.bfloat16)
    for product in FP8_PRODUCTS:
        assert of(found, product) == wrong, product
