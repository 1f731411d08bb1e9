"""How a weight is quantized in each published layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

FP8 = ml_dtypes.float8_e4m3fn
FP8_MAX = float(ml_dtypes.finfo(FP8).max)
FP4 = ml_dtypes.float4_e2m1fn
FP4_MAX = float(ml_dtypes.finfo(FP4).max)
BLOCK = 128


@dataclass(frozen=True)
class Layout:
    """How a quantized checkpoint is written.

    Args:
        config: Its ``quantization_config``.
        scales: One scale a "tensor", a "channel" or a "block"; "group" is GPTQ,
            "sixteen" NVFP4.
        weight_scale: What the weight's scale is called.
        input_scale: What the activations' scale is called, if there is one.
        dtype: Of the scales.
        scalar: The shape of a single scale.
        native: Whether names and rotary order are Mistral's own.
        weight: What NVFP4's weight is called.
        whole_scale: What NVFP4's scale of the whole weight is called.
        divisors: Whether NVFP4's scales of a whole tensor divide.
        shared: Whether NVFP4's scales of whole weights are all alike.
        standalone: Whether the config is in ``hf_quant_config.json``.
    """

    config: dict[str, Any]
    scales: str
    weight_scale: str = "weight_scale"
    input_scale: str | None = None
    dtype: Any = np.float32
    scalar: tuple[int, ...] = ()
    native: bool = False
    weight: str = "weight"
    whole_scale: str = "weight_scale_2"
    divisors: bool = False
    shared: bool = False
    standalone: bool = False

    @property
    def encoding(self) -> str:
        """The checkpoint's ``--quantization-encoding``."""
        encodings = {"group": "gptq", "sixteen": "float4_e2m1fnx2"}
        return encodings.get(self.scales, "float8_e4m3fn")


def quantize(name: str, tensor: Array, layout: Layout) -> tuple[Tensors, Array]:
    """Returns what stands for a projection in a file, and what that is worth.

    Args:
        name: The weight's.
        tensor: The weight, float32 ``[out_dim, in_dim]``.
        layout: How it is written.
    """
    how = {"group": _gptq, "sixteen": _nvfp4}.get(layout.scales, _fp8)
    return how(name, tensor, layout)


def _fp8(name: str, tensor: Array, layout: Layout) -> tuple[Tensors, Array]:
    rows, columns = tensor.shape
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "block": (BLOCK, BLOCK),
    }[layout.scales]
    blocks = tensor.reshape(rows // height, height, columns // width, width)
    scales = np.abs(blocks).max(axis=(1, 3)) / FP8_MAX
    scales = scales.astype(layout.dtype).astype(np.float32)
    wide = scales.repeat(height, axis=0).repeat(width, axis=1)
    # A scale rounded down could push the largest weight past the format's end.
    rounded = np.clip(tensor / wide, -FP8_MAX, FP8_MAX).astype(FP8)
    stem = name.removesuffix("weight")
    shape = layout.scalar if layout.scales == "tensor" else scales.shape
    parts = {
        name: rounded,
        stem + layout.weight_scale: scales.astype(layout.dtype).reshape(shape),
    }
    if layout.input_scale is not None:
        scale = np.full(layout.scalar, 0.05, layout.dtype)
        parts[stem + layout.input_scale] = scale
    return parts, rounded.astype(np.float32) * wide


def _nvfp4(name: str, tensor: Array, layout: Layout) -> tuple[Tensors, Array]:
    rows, columns = tensor.shape
    groups = tensor.reshape(rows, columns // 16, 16)
    largest = np.abs(groups).max(axis=2)
    # The largest weight is about the largest of both formats' numbers. Powers of
    # two, so that transformers' rounding to bfloat16 changes nothing.
    whole = np.exp2(np.ceil(np.log2(largest.max() / (FP4_MAX * FP8_MAX))))
    if layout.shared:
        whole = np.float32(2**-11)
    scales = (largest / (FP4_MAX * whole)).astype(FP8)
    wide = scales.astype(np.float32).repeat(16, axis=1)
    rounded = (tensor / (wide * whole)).astype(FP4)
    codes = rounded.view(np.uint8)
    stem = name.removesuffix("weight")
    whole_scale, input_scale = whole, np.float32(2**-9)
    if layout.divisors:
        whole_scale, input_scale = 1 / whole, 1 / input_scale
    assert layout.input_scale is not None
    parts = {
        # Two in a byte, the even column in the lower half.
        stem + layout.weight: codes[:, 0::2] | codes[:, 1::2] << 4,
        stem + layout.weight_scale: scales,
        stem + layout.whole_scale: np.full(layout.scalar, whole_scale, np.float32),
        stem + layout.input_scale: np.full(layout.scalar, input_scale, np.float32),
    }
    values = rounded.astype(np.float32) * wide
    return parts, values / whole_scale if layout.divisors else values * whole_scale


def _gptq(name: str, tensor: Array, layout: Layout) -> tuple[Tensors, Array]:
    rows, columns = tensor.shape
    groups = np.arange(columns) // BLOCK
    if layout.config["desc_act"]:
        groups = np.random.default_rng(2).permutation(groups)
    kinds = range(columns // BLOCK)
    largest = [np.abs(tensor[:, groups == kind]).max(axis=1) for kind in kinds]
    scales = (np.stack(largest) / 7).astype(np.float16)
    by_column = scales.astype(np.float32)[groups].T
    codes = np.clip(np.rint(tensor / by_column) + 8, 0, 15).astype(np.uint32)
    # [rows, columns] -> [columns / 8, 8, rows], the first column in the lowest bits
    eights = codes.T.reshape(columns // 8, 8, rows)
    shifts = (4 * np.arange(8, dtype=np.uint32))[None, :, None]
    packed = np.ascontiguousarray((eights << shifts).sum(axis=1, dtype=np.uint32))
    # AutoGPTQ writes the zero point less one: 7 in every 4 bits.
    zeros = np.full((len(scales), rows // 8), 0x77777777, np.int32)
    stem = name.removesuffix("weight")
    parts = {
        stem + "qweight": packed.view(np.int32),
        stem + "qzeros": zeros,
        stem + "scales": scales,
        stem + "g_idx": groups.astype(np.int32),
        stem + "bias": np.zeros(rows, np.float16),
    }
    return parts, (codes.astype(np.float32) - 8) * by_column
