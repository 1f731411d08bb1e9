"""The values of small tensors, on which the graph depends."""

from __future__ import annotations

import numpy as np
from max.driver import is_virtual_device_mode
from max.graph.weights import WeightData

from ..errors import UserError
from .dtypes import in_float32


def read_scale(
    weight: WeightData, source: str, *, divides: bool, inverse: bool
) -> WeightData:
    """Returns a scale in float32, to multiply with: ``[]``, ``[rows, 1]`` or blocks.

    Args:
        weight: As it is in the checkpoint; ``[1]`` and ``[rows]`` do too.
        source: What to call the checkpoint in a message.
        divides: Whether anything is divided by it.
        inverse: Whether its inverse is wanted.

    Raises:
        UserError: (a ``ValueError``) naming a scale that is not finite, or 0
            where it divides.
    """
    scale = in_float32(weight)
    # max warm-cache may have zeros for a checkpoint that is not there.
    if is_virtual_device_mode():
        scale = np.where(scale == 0, np.float32(1), scale)
    wrong = scale[~np.isfinite(scale) | ((scale == 0) & divides)]
    if wrong.size:
        raise UserError(
            f"{weight.name} of {source} has the scale {wrong[0]}. The checkpoint is "
            "damaged, or its calibration failed: use another one of the model."
        )
    if scale.ndim == 1:
        # [1] -> [], [rows] -> [rows, 1]
        scale = scale.reshape(() if len(scale) == 1 else (-1, 1))
    if inverse:
        scale = np.float32(1) / scale
    # NumPy makes scalars of arrays without dimensions.
    return WeightData.from_numpy(np.asarray(scale), weight.name)
