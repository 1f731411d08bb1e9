"""What a user asked for of the matmuls, and in which order they are tried."""

from __future__ import annotations

from typing import Literal

from max.driver import Device, accelerator_api
from max.dtype import DType
from max.pipelines.lib import PipelineConfig

from .. import switches
from ..errors import UserError
from ..model_config import MistralConfig
from ..switches import chosen, is_on
from .cublas import INSTALL

Matmul = Literal["MAX's own matmul", "the vendor's BLAS", "MAX's multistage GEMM"]
OWN: Matmul = "MAX's own matmul"
VENDOR: Matmul = "the vendor's BLAS"
MULTISTAGE: Matmul = "MAX's multistage GEMM"

# With these a user asks for what is not MAX's own.
FLAGS = {
    VENDOR: "--use-vendor-blas true",
    MULTISTAGE: f"{switches.MATMUL}=multistage",
}
_KEEP = f"{switches.FP8}=keep"
# Found of cuBLAS.
MISSING = f"is not installed ({INSTALL})"


def self_check_is_on() -> bool:
    """Whether the environment's ``MAX_MISTRAL_SELF_CHECK`` is ``on``, the default.

    Raises:
        UserError: (a ``ValueError``) if it is neither ``on`` nor ``off``.
    """
    return is_on(switches.SELF_CHECK)


def asked_for(
    config: MistralConfig, pipeline_config: PipelineConfig, device: Device
) -> Matmul:
    """Returns the matmul that the user asked for, MAX's own by default.

    Args:
        config: The model's; in FP8 it may need one.
        pipeline_config: Has MAX's flag, ``--use-vendor-blas``.
        device: One of those that the model will run on.

    Raises:
        UserError: (a ``ValueError``) if the environment's ``MAX_MISTRAL_MATMUL`` is
            neither ``max``, the default, nor ``multistage``, or that is asked for
            beside the flag, or for other than NVIDIA's GPUs.
    """
    found = chosen(switches.MATMUL, "max", "multistage")
    flag = pipeline_config.runtime.use_vendor_blas.lower()
    is_vendor = flag not in ("false", "off", "no", "0")
    if found == "max" and not config.needs_own_matmul:
        return VENDOR if is_vendor else OWN
    if is_vendor:
        other = FLAGS[MULTISTAGE] if found == "multistage" else _KEEP
        raise UserError(
            f"{other} and {FLAGS[VENDOR]} ask for two matmuls. Leave one of them out."
        )
    if device.is_host or accelerator_api() != "cuda":
        raise UserError(
            f"{FLAGS[MULTISTAGE]} is for NVIDIA's GPUs, and the model is to run on "
            f"{'a CPU' if device.is_host else accelerator_api()}. Leave it out."
        )
    return MULTISTAGE


def choices_for(asked: Matmul, api: str) -> list[Matmul]:
    """Returns the matmuls to try, in this order.

    Args:
        asked: What the user asked for.
        api: The GPUs', such as ``"cuda"``.
    """
    if asked is not OWN:
        return [asked]
    # AMD's BLAS ends the process where device graphs are captured, as MAX says.
    return [OWN, VENDOR, MULTISTAGE] if api == "cuda" else [OWN]


def mends(asked: Matmul, config: MistralConfig) -> list[str]:
    """Returns what a user can do about what was asked for."""
    found = []
    if asked is VENDOR:
        found.append(f"leave {FLAGS[VENDOR]} out")
    if config.needs_own_matmul:
        found.append(f"leave {_KEEP} out")
    elif asked is MULTISTAGE:
        found.append(f"leave {FLAGS[MULTISTAGE]} out")
    # A quantized checkpoint has no other encoding on a GPU.
    quantized = config.quantization is not None or config.restored
    if not quantized and config.dtype == DType.bfloat16:
        found.append("give --quantization-encoding float32")
    return found
