"""A quantized checkpoint whose projections become bfloat16 at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData

from ..weights.finite import check_weight
from ..weights.names import ExpectedTensor
from ..weights.stored import Stored
from .base import Expected, WeightFormat


class RestoredWeights:
    """The scales of such a checkpoint, and what becomes of the weights under them.

    Args:
        weight_format: How it is quantized.
        expected: All its tensors.
        found: These.
        dtype: Of what is not quantized.
        source: What to call the checkpoint in messages.
    """

    def __init__(
        self,
        weight_format: WeightFormat,
        expected: Mapping[str, ExpectedTensor],
        found: Mapping[str, WeightData],
        dtype: DType,
        source: str,
    ) -> None:
        self.weight_format = weight_format
        self.tensors: Expected = {}
        """Those that are no scales."""
        self._found, self._source = found, source
        self._scales: dict[str, WeightData] = {}
        for name, tensor in expected.items():
            weight, _, role = tensor.graph.rpartition("_")
            if role != "scale":
                self.tensors[name] = tensor
            elif weight.endswith(".weight"):
                self._scales[weight] = weight_format.convert(
                    tensor.graph, found[name], dtype, source
                )

    def bytes_of(
        self, name: str, stored: Stored
    ) -> Callable[[], npt.NDArray[np.uint8]] | None:
        """Returns what computes a weight's bytes in bfloat16; ``None`` without a scale.

        Args:
            name: Its name in the checkpoint.
            stored: Where its bytes are.
        """
        scale = self._scales.get(self.tensors[name].graph)
        return None if scale is None else partial(self._restore, name, stored, scale)

    def _restore(
        self, name: str, stored: Stored, scale: WeightData
    ) -> npt.NDArray[np.uint8]:
        check_weight(self._found[name], self._source)
        shape = self.tensors[name].shape
        return self.weight_format.restore(stored.read(), shape, scale)
