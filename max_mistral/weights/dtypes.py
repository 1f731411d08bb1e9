"""The dtypes that a checkpoint's tensors may have."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData

from ..errors import UserError

FLOATS = (DType.float32, DType.bfloat16, DType.float16)
SCALED = (DType.float8_e4m3fn, DType.uint8)
"""What projections are in FP8 and in NVFP4."""


def check_dtype(weight: WeightData, kinds: Collection[DType], source: str) -> None:
    """Raises a ``UserError`` that names a tensor whose dtype is none of ``kinds``."""
    if weight.dtype not in kinds:
        raise UserError(
            f"{weight.name} of {source} is {weight.dtype.name}; by its config.json "
            f"it should be {' or '.join(kind.name for kind in kinds)}. Take "
            "config.json and all weights from the same checkpoint."
        )


def cast(weight: WeightData, dtype: DType) -> WeightData:
    """Returns a float tensor in ``dtype``.

    To float32 not by MAX's ``astype``, which loads a graph for it, seconds of a start.
    """
    if weight.dtype != dtype and dtype == DType.float32:
        return WeightData.from_numpy(in_float32(weight), weight.name)
    return weight.astype(dtype)


def in_float32(weight: WeightData) -> npt.NDArray[np.float32]:
    """Returns a float tensor's values; in ``max warm-cache`` MAX has no ``astype``."""
    raw = weight.to_buffer()
    if weight.dtype == DType.bfloat16:
        # NumPy has none: it is the upper half of a float32.
        upper = raw.view(DType.uint16, raw.shape).to_numpy().astype(np.uint32)
        upper <<= 16
        return upper.view(np.float32)
    return raw.to_numpy().astype(np.float32)
