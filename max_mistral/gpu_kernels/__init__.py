"""Products on MAX's multistage GEMM, for GPUs on which its other matmul is wrong."""

from pathlib import Path

from ..kernels.compiler import compiled


def library() -> Path:
    """Returns the compiled kernels, a ``.mojoc`` file; compiles them if needed.

    In a graph that is traced with it, and its subgraphs, they take the place of
    MAX's own matmul.

    Raises:
        UserError: (a ``ValueError``) if MAX's toolchain cannot compile them.
    """
    return compiled(Path(__file__).parent, prefix="gpu-")
