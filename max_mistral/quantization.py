"""Which quantized checkpoints run, and how MAX is told.

They run on GPUs. Only the projections of the blocks are quantized; embedding,
norms and head are not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from max.driver import accelerator_architecture_name, accelerator_count
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.quantization import QuantizationConfig
from max.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)

from .errors import UserError

BLOCK = 128
"""Side of an FP8 weight's blocks, and columns of a GPTQ weight's groups: what
MAX's kernels take."""


@dataclass(frozen=True)
class FP8:
    """Projections in ``float8_e4m3fn``, of which some may be left in bfloat16."""

    scales: Literal["tensor", "channel", "block"]
    """One scale for a weight, for a row of it, or for 128 x 128 of it."""
    static: bool
    """Whether the checkpoint has a scale for the activations too, one for a
    projection; if not, each token is scaled as it comes."""

    def quant_config(
        self, attention: Collection[int], mlp: Collection[int], *, fuse_mlp: bool
    ) -> QuantConfig:
        """Returns the same for ``max.nn``. All scales are float32.

        Args:
            attention: The layers whose attention is in FP8.
            mlp: The layers whose MLP is in FP8.
            fuse_mlp: Whether gate and up may run as one product.
        """
        if self.scales == "block":
            config = QuantConfig.blockscaled_fp8(
                mlp_quantized_layers=mlp,
                attn_quantized_layers=attention,
                block_size=BLOCK,
            )
            config.can_use_fused_mlp = fuse_mlp
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
            mlp_quantized_layers=set(mlp),
            attn_quantized_layers=set(attention),
            format=QuantFormat.COMPRESSED_TENSORS_FP8,
            can_use_fused_mlp=fuse_mlp,
        )


@dataclass(frozen=True)
class NVFP4:
    """Projections in ``float4_e2m1fn``, of which some may be left in bfloat16.

    Two numbers in a byte, the even column in its lower half; a ``float8_e4m3fn``
    scale for every 16 of a row, a float32 one for the weight, and one for its
    activations, which are rounded to the same format as they come.
    """

    compressed: bool
    """Whether the checkpoint is one of compressed-tensors, not of ModelOpt: its
    names differ, and it has the inverses of the float32 scales."""

    def quant_config(
        self, attention: Collection[int], mlp: Collection[int], *, fuse_mlp: bool
    ) -> QuantConfig:
        """Returns the same for ``max.nn``; see :meth:`FP8.quant_config`."""
        return QuantConfig.nvfp4(
            attn_quantized_layers=attention,
            mlp_quantized_layers=mlp,
            can_use_fused_mlp=fuse_mlp,
        )


# MAX's own; its name says as much of FP8.
GPTQ = QuantizationConfig
Scaled = FP8 | NVFP4
Quantization = Scaled | GPTQ

# What a quantized checkpoint is called, and its --quantization-encoding.
_CALLED: dict[type, tuple[str, str]] = {
    FP8: ("FP8", "float8_e4m3fn"),
    NVFP4: ("NVFP4", "float4_e2m1fnx2"),
    GPTQ: ("GPTQ", "gptq"),
}


def gpu_architecture() -> str | None:
    """Returns the GPUs' architecture, such as ``sm_90a``; ``None`` without GPUs."""
    return accelerator_architecture_name() if accelerator_count() else None


def lacks_scaled_product() -> bool:
    """Whether MAX's FP8 products do not compile for these GPUs, but for blocks.

    On Hopper in 26.7 its kernel for a product with a scale a tensor or a row
    stops with "static coordinate 2 is out of bounds" (``tile_writer.mojo``).
    """
    return (gpu_architecture() or "").startswith("sm_90")


def check_runs(
    quantization: Quantization, devices: Sequence[DeviceRef], dtype: DType
) -> None:
    """Raises a ``UserError`` if a quantized checkpoint cannot run as asked.

    Args:
        quantization: How it is quantized.
        devices: Where it is to run.
        dtype: Of the activations.
    """
    name, encoding = _CALLED[type(quantization)]
    if any(device.is_cpu() for device in devices):
        raise UserError(
            f"The checkpoint is quantized in {name}, which runs on GPUs only. Name "
            "one (--devices gpu:0); on a CPU run the model's bfloat16 checkpoint or "
            "a GGUF file of it."
        )
    if dtype != DType.bfloat16:
        raise UserError(
            f"The checkpoint is quantized in {name}, but the activations would be "
            f"{dtype.name}. Set --quantization-encoding {encoding}."
        )
    if isinstance(quantization, GPTQ) and len(devices) > 1:
        raise UserError(
            f"The checkpoint is quantized in GPTQ, which runs on one GPU, not on "
            f"{len(devices)}. Name one in --devices."
        )
    gpu = gpu_architecture() or ""
    if isinstance(quantization, NVFP4) and gpu and not gpu.startswith("sm_10"):
        raise UserError(
            "The checkpoint is quantized in NVFP4, whose products MAX has for "
            f"Blackwell (sm_100, sm_103) only; this GPU is {gpu}. Run the model's "
            "FP8 or bfloat16 checkpoint here."
        )
