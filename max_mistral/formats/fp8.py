"""FP8: projections in ``float8_e4m3fn``, with scales beside them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import TensorValue, ops
from max.graph.weights import WeightData
from max.nn.float8_scale_stacking import can_use_fused_mlp
from max.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from max.nn.stacked_linear import StackedLinear

from .. import switches
from ..gpu import gpu_architecture, has_idle_fp8_cores, lacks_fast_blocks
from ..switches import chosen
from ..weights.dtypes import FLOATS, check_dtype, in_float32
from ..weights.names import ExpectedTensor
from ..weights.scales import read_scale
from .base import (
    BLOCK,
    Expected,
    Linears,
    convert_float,
    is_projection,
    part_of_projection,
)
from .qkv import OwnShards
from .restore import restore
from .scaled import QuantizedLayers, ScaledFormat, check_blocks

logger = logging.getLogger("max.pipelines")

# What checkpoints call a scale: Hugging Face's fp8; compressed-tensors, AutoFP8
# and ModelOpt; Mistral's own format.
_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_INPUT_SCALES = ("activation_scale", "input_scale", "qscale_act")


def keeps_fp8() -> bool:
    """Whether the environment's ``MAX_MISTRAL_FP8`` is ``keep``, not ``bfloat16``.

    It says what becomes of FP8 weights on GPUs that MAX has no fast products for.

    Raises:
        UserError: (a ``ValueError``) if it is neither.
    """
    return chosen(switches.FP8, "bfloat16", "keep") == "keep"


@dataclass(frozen=True)
class FP8(ScaledFormat):
    """Projections in ``float8_e4m3fn``, some of which may be left in bfloat16."""

    NAME = "FP8"
    ENCODING = "float8_e4m3fn"

    scales: Literal["tensor", "channel", "block"]
    """One scale per weight, per row of it, or per 128 x 128 block."""
    static: bool
    """Whether the checkpoint also has one scale per projection for the activations;
    if not, each token is scaled as it comes."""

    @property
    def reads_native(self) -> bool:  # type: ignore[override]
        """Only one scale per tensor stays where it is when rows move."""
        return self.scales == "tensor"

    def tensors(
        self, name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData]
    ) -> Expected:
        """See :meth:`WeightFormat.tensors`."""
        expected = {name: tensor}
        if name not in found or found[name].dtype != DType.float8_e4m3fn:
            return expected
        rows, columns = tensor.shape
        shape: tuple[int, ...] = {
            "tensor": (),
            "channel": (rows, 1),
            "block": (math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)),
        }[self.scales]
        expected |= part_of_projection(
            name, tensor, found, "weight_scale", _WEIGHT_SCALES, shape
        )
        if self.static:
            expected |= part_of_projection(
                name, tensor, found, "input_scale", _INPUT_SCALES, ()
            )
        return expected

    def convert(
        self, graph_name: str, weight: WeightData, dtype: DType, source: str
    ) -> WeightData:
        """See :meth:`WeightFormat.convert`."""
        role = graph_name.rpartition(".")[2]
        if role in ("weight_scale", "input_scale"):
            check_dtype(weight, FLOATS, source)
            divides = role == "input_scale"
            return read_scale(weight, source, divides=divides, inverse=False)
        if is_projection(graph_name):
            check_dtype(weight, (DType.float8_e4m3fn, *FLOATS), source)
            if weight.dtype == DType.float8_e4m3fn:
                return weight
        return convert_float(weight, dtype, source)

    def is_restored(self, *, on_cpu: bool) -> bool:
        """See :meth:`WeightFormat.is_restored`."""
        return on_cpu or (lacks_fast_blocks() and not keeps_fp8())

    def restore(
        self, data: npt.NDArray[np.uint8], shape: tuple[int, ...], scale: WeightData
    ) -> npt.NDArray[np.uint8]:
        """See :meth:`WeightFormat.restore`."""
        rows, columns = shape
        height, width = {
            "tensor": (rows, columns),
            "channel": (1, columns),
            "block": (BLOCK, BLOCK),
        }[self.scales]
        scales = np.atleast_2d(in_float32(scale))
        bits = restore(data.reshape(shape), scales, height, width)
        return bits.view(np.uint8).reshape(-1)

    def finalize_layers(
        self,
        layers: QuantizedLayers,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        degree: int,
    ) -> FP8:
        """See :meth:`ScaledFormat.finalize_layers`."""
        # max.nn puts the scales of Q, K and V under each other, and of gate and
        # up; MAX's kernel takes whole blocks of columns.
        check_blocks(widths, BLOCK if self.scales == "block" else 1, degree)
        if lacks_fast_blocks() and not self.needs_own_matmul:
            logger.warning(
                "On this GPU (%s) MAX 26.7 computes FP8 products without tensor cores, "
                "at a fraction of bfloat16's speed. Without %s=keep the weights become "
                "bfloat16.",
                *(gpu_architecture(), switches.FP8),
            )
        fuse = can_use_fused_mlp(
            dict(weights), tensor_wise=self.scales == "tensor" and not self.static
        )
        return replace(self, layers=replace(layers, fuse_mlp=fuse))

    @property
    def needs_own_matmul(self) -> bool:  # type: ignore[override]
        """Blocks of scales have no kernel of ours."""
        return self.scales != "block" and has_idle_fp8_cores()

    @cached_property
    def quant_config(self) -> QuantConfig:
        """See :attr:`ScaledFormat.quant_config`."""
        layers = self.layers
        if self.scales == "block":
            config = QuantConfig.blockscaled_fp8(
                mlp_quantized_layers=layers.mlp,
                attn_quantized_layers=layers.self_attn,
                block_size=BLOCK,
            )
            config.can_use_fused_mlp = layers.fuse_mlp
            return config
        whole = self.scales == "tensor"
        return QuantConfig(
            input_scale=InputScaleSpec(
                # MAX pairs weights with one scale with activations with one,
                # and scales the latter by token all the same.
                ScaleGranularity.TENSOR if whole else ScaleGranularity.COLWISE,
                ScaleOrigin.STATIC if self.static else ScaleOrigin.DYNAMIC,
                DType.float32,
            ),
            weight_scale=WeightScaleSpec(
                ScaleGranularity.TENSOR if whole else ScaleGranularity.ROWWISE,
                DType.float32,
            ),
            mlp_quantized_layers=set(layers.mlp),
            attn_quantized_layers=set(layers.self_attn),
            format=QuantFormat.COMPRESSED_TENSORS_FP8,
            can_use_fused_mlp=layers.fuse_mlp,
        )

    def quantized_linears(self) -> Linears:
        """See :meth:`ScaledFormat.quantized_linears`."""
        made_of = Linears(DType.float8_e4m3fn, quant_config=self.quant_config)
        return replace(made_of, qkv_cls=StaticFP8QKV) if self.static else made_of


class StaticFP8QKV(OwnShards, StackedLinear):
    """Q, K and V in one matmul, each row under its own scale.

    ``StackedLinear`` rounds the weights a second time, to the largest of the
    three scales. With one scale per row, MAX's matmul takes them as they are.
    The activations' scale is the largest of the three: they are of one input.
    """

    def _concat_child_weights(self) -> TensorValue:
        return ops.concat([self._child(name).weight for name in self._names])

    @property
    def stacked_weight_scale(self) -> TensorValue:
        """The scales, float32 ``[sum(out_dims), 1]``."""
        rows = []
        for name in self._names:
            child = self._child(name)
            assert child.weight_scale is not None
            scale = child.weight_scale.reshape([1, 1])
            rows.append(ops.broadcast_to(scale, [child.weight.shape[0], 1]))
        return ops.concat(rows)
