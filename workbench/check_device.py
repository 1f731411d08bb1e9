"""What ``make check-gpu`` runs on: a GPU, or in its dry run a CPU.

``scripts/check_gpu.py --dry-run`` sets ``MAX_MISTRAL_CHECK_DEVICE=cpu``, and the steps
compute on a CPU what they would compute on a GPU, of small sizes: so a mistake in a
step is found before the step meets a GPU.

Imports MAX where it is needed only: ``scripts/check_gpu.py`` reads this too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from max.driver import Device, DeviceSpec

VARIABLE = "MAX_MISTRAL_CHECK_DEVICE"
# In a process of its own, for MAX takes most of the GPU's memory at once.
GPU_NAME = "from max.driver import Accelerator; print(Accelerator().model_name)"
"""A program that prints which GPU is here; it fails without one."""

# In the place of a 7B model's. Q, K and V together are as large as gate and up, and
# o_proj as down_proj: a CPU compiles each shape of a product for many seconds.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_hidden_layers": 2,
}


def is_dry() -> bool:
    """Whether a CPU stands for the GPU.

    Raises:
        ValueError: if the variable has another word than ``cpu`` or ``gpu``.
    """
    found = os.environ.get(VARIABLE, "gpu")
    if found not in ("cpu", "gpu"):
        raise ValueError(
            f"{VARIABLE} is {found!r}. Set it to cpu to check on a CPU, or leave it "
            "out to check a GPU."
        )
    return found == "cpu"


def device() -> Device:
    """Returns the device to check."""
    from max.driver import CPU, Accelerator

    return CPU() if is_dry() else Accelerator()


def specs() -> list[DeviceSpec]:
    """Returns the same as a flag of MAX's, ``device_specs``."""
    from max.driver import DeviceSpec

    return [DeviceSpec.cpu() if is_dry() else DeviceSpec.accelerator()]


def flags(encoding: str) -> dict[str, Any]:
    """Returns MAX's flags for a model on that device.

    Args:
        encoding: Its ``quantization_encoding`` on a GPU. On a CPU there is float32
            alone, for checkpoints in bfloat16 too.
    """
    if not is_dry():
        return {"device_specs": specs(), "quantization_encoding": encoding}
    return {
        "device_specs": specs(),
        "quantization_encoding": "float32",
        "kv_cache_format": "float32",
    }
