"""Products on MAX's multistage GEMM, for GPUs on which its other matmul is wrong."""

from pathlib import Path

from ..kernels.compiler import compiled


def library(*, fp8: bool = False) -> Path:
    """Returns the compiled kernels, a ``.mojoc`` file; compiles them if needed.

    In a graph that is traced with it, and its subgraphs, they take the place of
    MAX's own matmul.

    Args:
        fp8: Whether they take the place of MAX's FP8 matmuls too. Those of MAX know
            more: scales of blocks, and datacenter Blackwell's tensor cores.

    Raises:
        UserError: (a ``ValueError``) if MAX's toolchain cannot compile them.
    """
    without = () if fp8 else ("fp8_matmul",)
    return compiled(Path(__file__).parent, prefix="gpu-", without=without)
