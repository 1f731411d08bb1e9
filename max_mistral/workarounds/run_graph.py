"""Runs a compiled graph once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from max.driver import Buffer, Device
from max.engine import Model

from .idle_threads import threads_that_wait


def run_graph(
    model: Model, device: Device, buffers: Sequence[Buffer], *, first: bool
) -> list[Buffer]:
    """Returns the graph's outputs.

    Args:
        model: The graph.
        device: The first of those it runs on.
        buffers: Its inputs, in order.
        first: Whether it has not run yet.
    """
    if device.is_host:
        # MAX copies a step's inputs in the background, and on a CPU does not
        # wait for it: on a busy machine the graph would read the step before's.
        device.synchronize()
    with threads_that_wait() if device.is_host and first else nullcontext():
        return model.execute(*buffers)
