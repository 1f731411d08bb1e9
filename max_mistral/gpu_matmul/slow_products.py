"""Which products MAX's matmuls have no fast kernel for, on NVIDIA's GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from max.driver import accelerator_api
from max.dtype import DType

from ..gpu import gpu_architecture
from .asked import OWN, VENDOR, Matmul
from .cublas import load_cublas
from .products import Product

# Of the multistage GEMM's tiles in ``gpu_kernels/tiles.mojo``: the columns and terms
# that each takes a multiple of, and the fewest terms.
_TILES = {
    DType.bfloat16: ((64, 256, 1024), (64, 128, 640), (128, 64, 256)),
    DType.float32: ((128, 16, 64),),
    DType.float8_e4m3fn: ((64, 256, 1024), (64, 256, 768), (128, 128, 384)),
}


def slow_products(matmul: Matmul, every: Sequence[Product], dtype: DType) -> str:
    """Returns the products that MAX's slowest kernel computes, for a message.

    It takes any, of several rows. Those that MAX's own matmul leaves to cuBLAS are
    among them only where that is not installed.

    Args:
        matmul: Which runs.
        every: The products of a model.
        dtype: Of their operands, unless they are in FP8.
    """
    if accelerator_api() != "cuda" or matmul is VENDOR:
        return ""
    if matmul is OWN:
        gpu = gpu_architecture() or ""
        slow = [p for p in every if leaves_to_cublas(p, dtype, gpu)]
        slow = [] if slow and load_cublas() else slow
    else:
        slow = [p for p in every if not fits_multistage(p, dtype)]
    return ", ".join(str((p.terms, p.columns)) for p in slow)


def leaves_to_cublas(product: Product, dtype: DType, gpu: str) -> bool:
    """Whether MAX's own matmul calls cuBLAS for several rows of a product.

    Without cuBLAS that ends the process. By ``_matmul_gpu`` of MAX's
    ``linalg/matmul/gpu``.

    Args:
        product: Which.
        dtype: Of its operands, unless they are in FP8.
        gpu: The architecture, such as ``sm_90a``.
    """
    if product.fp8 or gpu.startswith("sm_10"):
        return False
    if gpu.startswith("sm_90") and dtype == DType.bfloat16:
        return False
    return product.columns % 128 != 0 or product.terms % 32 != 0 or product.terms < 128


def fits_multistage(product: Product, dtype: DType) -> bool:
    """Whether a tile of the multistage GEMM fits a product.

    If not, MAX's slowest kernel computes several rows of it.

    Args:
        product: Which.
        dtype: Of its operands, unless they are in FP8.
    """
    return any(
        product.columns % columns == 0
        and product.terms % terms == 0
        and product.terms >= fewest
        for columns, terms, fewest in _TILES[
            DType.float8_e4m3fn if product.fp8 else dtype
        ]
    )
