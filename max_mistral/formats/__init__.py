"""The quantized weight formats that run on GPUs, one file each.

To add one: write its class beside the others, list it here, and read its
config in ``hf_quantization.py``.
"""

from .base import Linears, WeightFormat
from .fp8 import FP8
from .gptq import GPTQ
from .nvfp4 import NVFP4

__all__ = ["FP8", "GPTQ", "NVFP4", "Linears", "WeightFormat"]
