"""Whether the CPU kernels compile and compute here."""

from __future__ import annotations

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType

from .. import kernels
from ..errors import UserError
from ..kernels.packing import Encoding, pack, packed_shape
from ..layers.packed_ops import multiply

_TOKENS, _ROWS, _COLUMNS = 3, 64, 32
# 32 roundings to 2^-24 of sums that stay below 50.
_MOST_OFF = 1e-4


def check_kernels() -> str:
    """Multiplies by a small float32 matrix and compares with NumPy.

    Returns:
        A line that says so.

    Raises:
        UserError: (a ``ValueError``) if the product is wrong, or MAX's toolchain
            cannot compile the kernels.
    """
    library = kernels.library()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_TOKENS, _COLUMNS)).astype(np.float32)
    weight = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    cpu = DeviceRef.CPU()
    inputs = [
        TensorType(DType.float32, list(x.shape), cpu),
        TensorType(DType.uint8, list(packed_shape(Encoding.F32, _ROWS, _COLUMNS)), cpu),
    ]
    with Graph("check", input_types=inputs, custom_extensions=[library]) as graph:
        activations, packed = (value.tensor for value in graph.inputs)
        graph.output(multiply(activations, [packed], [Encoding.F32], [_ROWS]))
    model = InferenceSession(devices=[CPU()]).load(graph)
    data = pack(weight.view(np.uint8), Encoding.F32, _COLUMNS)
    (found,) = model.execute(Buffer.from_numpy(x), Buffer.from_numpy(data))
    wrong = float(np.abs(found.to_numpy() - x @ weight.T).max())
    if not wrong < _MOST_OFF:
        raise UserError(
            f"The CPU kernels are off by {wrong:.3g} on this CPU; expected less than "
            f"{_MOST_OFF:g}. Please report it; MAX_MISTRAL_KERNELS=off runs without "
            "them."
        )
    return f"compiled in {library.parent}; a product is off NumPy's by {wrong:.1g}"
