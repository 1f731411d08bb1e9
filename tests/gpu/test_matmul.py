"""MAX's own bfloat16 matmul, at the shapes of the steps of 7B, Nemo and Small models.

On some GPUs MAX 26.7 computes garbage for some numbers of rows
(modular/modular #6883, #6884, #7146). Where this fails, no answer of any model
in bfloat16 can be relied on, and the other tests' failures follow from it.
"""

import os

import ml_dtypes
import numpy as np
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType
from max.nn import Linear

from benchmarks.matmul import missing
from max_mistral import switches
from max_mistral.gpu_matmul import asked, matmuls
from max_mistral.gpu_matmul.check_operands import rows_of
from max_mistral.gpu_matmul.self_check import rows_to_try
from workbench import check_device

# Every number of them; then some of each tile that MAX chooses by the rows, of which
# modular/modular #7146 has the last. They are the first 256 again.
MOST_ROWS = 256
MANY_ROWS = (257, 384, 512, 513, 768, 1024, 2048, 4096, 8192)
UNIT = 2.0**-8  # the unit roundoff of bfloat16


@pytest.fixture(scope="module")
def session():
    skip_if_missing()
    return InferenceSession(devices=[check_device.device()])


def skip_if_missing():
    """Else MAX's own would answer for the multistage GEMM, or an error for cuBLAS."""
    said = missing(matmul())
    if said and not check_device.is_dry():
        pytest.skip(f"{matmul()}: {said}")


def skip_if_another_ran():
    """At a dry run's end: only a GPU can say more."""
    if check_device.is_dry() and matmul() is not asked.OWN:
        pytest.skip(f"a CPU has not {matmul()}: MAX's own ran in its place, and right")


def matmul():
    """The one that the environment asks for: MAX's own may be wrong."""
    if os.environ.get("MAX_MISTRAL_VENDOR_BLAS") == "1":
        return asked.VENDOR
    is_multistage = os.environ.get(switches.MATMUL) == "multistage"
    return asked.MULTISTAGE if is_multistage else asked.OWN


def compile_products(session, weights):
    """Returns ``xs -> [x @ weight.T for x, weight in ...]`` in bfloat16, for any rows.

    In one graph, which compiles in little more time than each would.

    Args:
        session: Compiles it.
        weights: float32 ``[N, K]`` each.
    """
    device = DeviceRef.from_device(session.devices[0])
    layers, registry = [], {}
    for i, weight in enumerate(weights):
        layer = Linear(*weight.shape[::-1], DType.bfloat16, device, name=f"linear_{i}")
        layers.append(layer)
        registry |= {f"linear_{i}.weight": to_buffer(weight)}
    types = [
        TensorType(DType.bfloat16, ["rows", weight.shape[1]], device=device)
        for weight in weights
    ]
    libraries = matmuls.compile_with(matmul(), session)
    with Graph("linear", input_types=types, custom_extensions=libraries) as graph:
        xs = [value.tensor for value in graph.inputs]
        graph.output(*(layer(x) for layer, x in zip(layers, xs, strict=True)))
    return session.load(graph, weights_registry=registry)


def to_buffer(values, dtype=DType.bfloat16):
    """Returns float32 values, rounded to bfloat16 or as they are, as a buffer."""
    if dtype == DType.float32:
        return Buffer.from_numpy(values)
    raw = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return Buffer.from_numpy(raw).view(DType.bfloat16, raw.shape)


def to_array(buffer):
    """Returns a buffer of bfloat16 or float32 as float32."""
    if buffer.dtype == DType.float32:
        return buffer.to_numpy()
    raw = buffer.view(DType.uint16, buffer.shape).to_numpy()
    return raw.view(ml_dtypes.bfloat16).astype(np.float32)


def random(rng, *shape):
    """Returns normal values that bfloat16 holds exactly, as float32."""
    values = rng.standard_normal(shape, dtype=np.float32)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def repeated(rng, *shape):
    """Returns such values as a weight: a million different ones, again and again.

    A prime number of them, so that no two rows are alike. All of a large head's, drawn
    one by one, would take longer than the products.
    """
    return np.resize(random(rng, 1_000_003), shape)


def bound(x, weight, want):
    """Returns by how much rounding may move each element, ``[M, N]``.

    The operands are exact and their products are summed up in float32, whose
    rounding is nothing beside that of the result to bfloat16, ``UNIT`` times
    its size. MAX may split K into up to eight sums and add them in bfloat16.
    Of the size that a sum of K random terms has, |x| |w| / sqrt(K), none of
    the at most 16 roundings of sums sees much more. A product that has
    nothing to do with the operands is off by all of that size, not 16 / 256.
    """
    sizes = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    return UNIT * (np.abs(want) + 16 * sizes / np.sqrt(x.shape[1]))


# [columns, terms]. Of 7B: attention's output; gate and up at once; down; Q, K and V at
# once; head.
SHAPES = [(4096, 4096), (28672, 4096), (4096, 14336), (6144, 4096), (32768, 4096)]
# Of Nemo, whose hidden size is 5120: attention's output; down; Q, K and V.
SHAPES += [(5120, 4096), (5120, 14336), (6144, 5120)]
# Nemo's gate and up, and its head, which is Small's too; Small's gate and up, and down.
WIDE = [(28672, 5120), (131072, 5120), (65536, 5120), (5120, 32768)]
if check_device.is_dry():
    # A CPU compiles each shape for a minute.
    SHAPES = WIDE = [(128, 64)] * 2
# What is tried of each: of the wide ones, whose results the host compares for long,
# the numbers of rows that the self-check tries.
CASES = {
    "7b-nemo": (SHAPES, [*range(1, MOST_ROWS + 1), *MANY_ROWS]),
    "wide": (WIDE, rows_to_try()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_rows(session, name):
    shapes, counts = CASES[name]
    rng = np.random.default_rng(0)
    weights = [repeated(rng, *shape) for shape in shapes]
    xs = [random(rng, MOST_ROWS, terms) for _, terms in shapes]
    wants = [x @ weight.T for x, weight in zip(xs, weights, strict=True)]
    bounds = [bound(*parts) for parts in zip(xs, weights, wants, strict=True)]
    model = compile_products(session, weights)
    device, wrong = session.devices[0], []
    longest = max(counts)
    on_device = [to_buffer(np.resize(x, (longest, x.shape[1]))).to(device) for x in xs]
    for rows in counts:
        found = model.execute(*(rows_of(x, 0, rows) for x in on_device))
        for shape, out, want, allowed in zip(shapes, found, wants, bounds, strict=True):
            share = 0
            # In float32 all would be 1 GB.
            for first in range(0, rows, MOST_ROWS):
                part = to_array(rows_of(out, first, min(first + MOST_ROWS, rows)))
                off = np.abs(part - want[: len(part)])
                # Not "off > allowed", which NaN would pass.
                share += (~(off <= allowed[: len(part)])).any(axis=1).sum()
            if share:
                wrong.append(f"({rows}, *{shape}): {share} of {rows} rows wrong")
    assert not wrong, (
        "The bfloat16 matmul is wrong on this GPU for (M, N, K) =\n" + "\n".join(wrong)
    )
    skip_if_another_ran()
