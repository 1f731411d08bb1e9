"""Compiles the products of the self-check for a GPU that need not be here.

    python -m workbench.compile_products cuda:sm_90a
    python -m workbench.compile_products cuda:sm_90a multistage
    python -m workbench.compile_products cuda:sm_90a fp8
    python -m workbench.compile_products cuda:sm_90a vendor
    python -m workbench.compile_products cuda:sm_90a small
    python -m workbench.compile_products cuda:sm_90a two-gpus

on MAX's own matmul, on its multistage GEMM, in bfloat16 or FP8, or on cuBLAS;
``small`` is one product of each on the multistage GEMM, which compiles in a minute,
``two-gpus`` the same on two GPUs.
"""

import sys

from max.driver import Accelerator
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, default_custom_extensions_scope

from max_mistral.gpu_kernels import library
from max_mistral.gpu_matmul.products import Product, block_products, check_graph
from workbench.virtual import use_virtual_gpus

HEAD = Product(32768, 4096, "float32", is_head=True)
# Of as many terms as the largest tile needs, and too few for the others.
SMALL = [Product(128, 256), Product(128, 384, fp8=True)]


def of_a_7b(*, fp8: bool) -> list[Product]:
    """Returns the products of a block of a 7B model, and of its head."""
    found = block_products(4096, 14336, queries=4096, keys=1024, fp8=fp8)
    if fp8:
        # One weight of those whose activations have a stored scale.
        found.append(Product(4096, 4096, fp8=True, static=True))
    return [*found, HEAD]


def main() -> None:
    """The command line."""
    target, *matmul = sys.argv[1:]
    count = 2 if matmul == ["two-gpus"] else 1
    use_virtual_gpus(target, count)
    small = matmul in (["small"], ["two-gpus"])
    fp8 = small or matmul == ["fp8"]
    session = InferenceSession(devices=[Accelerator(i) for i in range(count)])
    if matmul == ["vendor"]:
        session._use_vendor_blas("true")
    libraries = [library(fp8=fp8)] if matmul not in ([], ["vendor"]) else []
    products = SMALL if small else of_a_7b(fp8=fp8)
    gpus = [DeviceRef.GPU(i) for i in range(count)]
    with default_custom_extensions_scope(*libraries):
        graph = check_graph(products, DType.bfloat16, *gpus)
    session.load(graph)


if __name__ == "__main__":
    main()
