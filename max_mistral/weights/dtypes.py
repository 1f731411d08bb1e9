"""The dtypes that a checkpoint's tensors may have."""

from __future__ import annotations

from collections.abc import Collection

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
            f"it should be {' or '.join(kind.name for kind in kinds)}."
        )
