"""GPU kernels: products on MAX's multistage GEMM."""

from .matmul import Matmul
