"""Which GPUs are here, and what MAX 26.7 lacks for them."""

from __future__ import annotations

from max.driver import accelerator_architecture_name, accelerator_count


def gpu_architecture() -> str | None:
    """Returns the GPUs' architecture, such as ``sm_90a``; ``None`` without GPUs."""
    return accelerator_architecture_name() if accelerator_count() else None


def lacks_scaled_matmul() -> bool:
    """Whether MAX has no FP8 matmul for these GPUs but the block-scaled one.

    On Hopper in 26.7 its kernel for one scale per tensor or per row stops with
    "static coordinate 2 is out of bounds" (``tile_writer.mojo``).
    """
    return (gpu_architecture() or "").startswith("sm_90")
