"""Which GPUs are here, and what MAX 26.7 lacks for them."""

from __future__ import annotations

from max.driver import accelerator_architecture_name, accelerator_count


def gpu_architecture() -> str | None:
    """Returns the GPUs' architecture, such as ``sm_90a``; ``None`` without GPUs."""
    return accelerator_architecture_name() if accelerator_count() else None


def has_idle_fp8_cores() -> bool:
    """Whether MAX leaves these GPUs' tensor cores for FP8 unused.

    MAX uses those of sm_100 and sm_103. On Hopper its kernel for one scale per
    tensor or per row does not even compile: "static coordinate 2 is out of bounds"
    (``tile_writer.mojo``). Those of Ada (sm_89) nothing that MAX compiles can use: it
    writes PTX of an ISA below 8.4 for it.
    """
    return (gpu_architecture() or "").startswith(("sm_90", "sm_12"))


def lacks_fast_blocks() -> bool:
    """Whether MAX's block-scaled FP8 matmul has no tensor cores on these GPUs.

    Of NVIDIA's it has them on sm_100 and sm_103 only.
    """
    gpu = gpu_architecture() or ""
    return gpu.startswith("sm_") and not gpu.startswith("sm_10")
