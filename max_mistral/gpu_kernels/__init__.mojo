"""GPU kernels: products on MAX's multistage GEMM."""

from .fp8_matmul import MatmulDynamicScaledFP8, MatmulStaticScaledFP8
from .matmul import Matmul
