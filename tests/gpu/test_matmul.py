"""MAX's own bfloat16 matmul, at the shapes of the steps of a 7B model and of Nemo.

On some GPUs MAX 26.7 computes garbage for some numbers of rows
(modular/modular #6883, #6884, #7146). Where this fails, no answer of any model
in bfloat16 can be relied on, and the other tests' failures follow from it.
"""

import os

import ml_dtypes
import numpy as np
import pytest
from max.driver import Accelerator, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType
from max.nn import Linear

from max_mistral.cublas import load_cublas
from max_mistral.gpu_kernels import library

MOST_ROWS = 256
UNIT = 2.0**-8  # the unit roundoff of bfloat16


@pytest.fixture(scope="module")
def session():
    """With ``MAX_MISTRAL_VENDOR_BLAS=1`` cuBLAS computes, as where ours is wrong."""
    made = InferenceSession(devices=[Accelerator()])
    if os.environ.get("MAX_MISTRAL_VENDOR_BLAS") == "1":
        load_cublas()
        made._use_vendor_blas("true")
    return made


def compile_linear(session, weight):
    """Returns ``x [M, K] -> x @ weight.T [M, N]`` in bfloat16, for any M.

    Args:
        session: Compiles it.
        weight: float32 ``[N, K]``.
    """
    columns, terms = weight.shape
    layer = Linear(terms, columns, DType.bfloat16, DeviceRef.GPU())
    layer.load_state_dict({"weight": to_buffer(weight)})
    rows = TensorType(DType.bfloat16, ["rows", terms], device=DeviceRef.GPU())
    graph = Graph(
        "linear",
        lambda x: layer(x.tensor),
        input_types=[rows],
        # So that MAX's multistage GEMM computes.
        custom_extensions=[library()]
        if os.environ.get("MAX_MISTRAL_MATMUL") == "multistage"
        else [],
    )
    return session.load(graph, weights_registry=layer.state_dict())


def to_buffer(values):
    """Returns float32 values, exact in bfloat16, as a buffer of bfloat16."""
    raw = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return Buffer.from_numpy(raw).view(DType.bfloat16, raw.shape)


def to_array(buffer):
    """Returns a buffer of bfloat16 as float32."""
    raw = buffer.view(DType.uint16, buffer.shape).to_numpy()
    return raw.view(ml_dtypes.bfloat16).astype(np.float32)


def random(rng, *shape):
    """Returns normal values that bfloat16 holds exactly, as float32."""
    values = rng.standard_normal(shape, dtype=np.float32)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


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


@pytest.mark.parametrize(
    ("terms", "columns"),
    # Of 7B: attention's output; gate and up at once; down; Q, K and V at once; head.
    [(4096, 4096), (4096, 28672), (14336, 4096), (4096, 6144), (4096, 32768)]
    # Of Nemo, whose hidden size is 5120: attention's output; down; Q, K and V.
    + [(4096, 5120), (14336, 5120), (5120, 6144)],
)
def test_every_number_of_rows(session, terms, columns):
    rng = np.random.default_rng(0)
    x, weight = random(rng, MOST_ROWS, terms), random(rng, columns, terms)
    want = x @ weight.T
    allowed = bound(x, weight, want)
    model = compile_linear(session, weight)
    wrong = []
    for rows in range(1, MOST_ROWS + 1):
        (out,) = model.execute(to_buffer(x[:rows]).to(session.devices[0]))
        off = np.abs(to_array(out) - want[:rows])
        # Not "off > allowed", which NaN would pass.
        bad = ~(off <= allowed[:rows])
        if bad.any():
            share = bad.any(axis=1).sum()
            wrong.append(f"({rows}, {terms}, {columns}): {share} of {rows} rows wrong")
    assert not wrong, (
        "The bfloat16 matmul is wrong on this GPU for (M, K, N) =\n" + "\n".join(wrong)
    )
