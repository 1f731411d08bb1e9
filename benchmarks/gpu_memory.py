"""How much of the GPU's memory an engine's process takes.

All that it keeps from others: MAX reserves memory ahead, by default most of what is
free, so of MAX's engines this is what they are given rather than what they need.
After the run is as good as the peak, for MAX, torch and vLLM keep for later what they
have once taken.
"""

from __future__ import annotations

import subprocess

_ASK = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


def used_bytes() -> int | None:
    """Returns what all processes take of all GPUs; ``None`` where no driver says it.

    By a program of the driver's: to ask in this process would take memory too.
    """
    try:
        done = subprocess.run(
            _ASK, capture_output=True, text=True, check=False, timeout=30
        )
        # One line for each GPU; "[N/A]" where it shares the CPU's memory.
        found = [int(line) * 2**20 for line in done.stdout.splitlines()]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return sum(found) if found else None


def taken_bytes(before: int | None, *, is_max: bool) -> int | None:
    """Returns what an engine that has run here takes; ``None`` if that is not known.

    Args:
        before: What :func:`used_bytes` said before it started.
        is_max: Whether it runs on MAX, which says it where the driver does not, though
            with what other processes take.
    """
    after = used_bytes()
    if before is not None and after is not None:
        return after - before
    if not is_max:
        return None
    from max.driver import Accelerator

    try:
        stats = Accelerator().stats
        return int(stats["total_memory"]) - int(stats["free_memory"])
    except Exception as error:  # whatever the driver raises, the rates are not lost
        print(f"MAX does not say how much memory is taken: {error}", flush=True)
        return None
