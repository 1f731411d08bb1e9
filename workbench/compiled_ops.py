"""The kernels of a compiled graph, in the order in which they run.

MAX writes down each stage of a graph's way to machine code where a debug option
asks for it, and stops before that code is made where another one does. The last
stage names every operation, what it was fused with, and whether it runs once, when
the model is loaded, or at each step. No GPU is needed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from max.driver import DeviceSpec, load_devices
from max.engine import CompilationStopped, InferenceSession
from max.graph import Graph


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    graph: str
    """The graph or subgraph that it is of."""
    once: bool
    """Whether it runs when the model is loaded, and never again."""
    device: str
    """Such as ``gpu:0``."""
    operations: tuple[str, ...]
    """MAX's names of what it does; more than one where they were fused."""

    def __str__(self) -> str:
        return " + ".join(self.operations)


def compiled_kernels(graph: Graph, devices: Sequence[DeviceSpec]) -> list[Kernel]:
    """Returns the kernels of a graph, compiled as far as they are named."""
    session = InferenceSession(devices=load_devices(devices))
    with tempfile.TemporaryDirectory() as folder:
        session.debug.pre_jit = True
        session.debug.ir_output_dir = folder
        try:
            session.compile(graph)
        except CompilationStopped:
            pass
        finally:
            session.debug.reset()
        (path,) = Path(folder).glob("*.mgp.mlir")
        with path.open() as lines:
            return list(read_kernels(lines))


_FUSION = re.compile(r"(#\w+) = #mogg\.fusion<(.*)>$")
_GRAPH = re.compile(r"\bmgp\.model @(\w+)")
_CALL = re.compile(
    r"mogg\.compiled\.call @\w+\(.*?\bfusionInfo = (#\w+)"
    r'.*?\bdevice = #M\.device_ref<"(\w+)", (\d+)>'
)
COPY = "mgp.buffer.host_to_device"
"""The operation that copies to a device."""


def read_kernels(lines: Iterable[str]) -> Iterator[Kernel]:
    """Yields the kernels of the stage ``mgp``, and copies to a device.

    Args:
        lines: Of MAX's file, which has a kernel to a line.
    """
    fusions: dict[str, list[tuple[str, ...]]] = {}
    graph, once = "", False
    for line in lines:
        if found := _FUSION.match(line.rstrip()):
            fusions[found[1]] = list(_launches(found[2]))
        if found := _GRAPH.search(line):
            graph, once = found[1], True
        if re.match(r"\s*\} execute \(", line):
            once = False
        if found := _CALL.search(line):
            for operations in fusions.get(found[1], []):
                yield Kernel(graph, once, f"{found[2]}:{found[3]}", operations)


def _launches(fusion: str) -> Iterator[tuple[str, ...]]:
    """Yields the operations of each launch of a call, which may have several."""
    if fusion.startswith("#mogg.fusion_sequence<["):
        parts = _elements(fusion)
    else:
        parts = [fusion]
    for part in parts:
        names = re.findall(r'#mogg\.fusion_leaf<"([\w.]+)"', part)
        names = [name.removeprefix("custom__") for name in names]
        if names and (names[0] == COPY or names[0].partition(".")[0] not in _HOST):
            yield tuple(name.removeprefix("mo.") for name in names)


# What the processor does to launch a kernel: sizes, buffers, waiting.
_HOST = frozenset({"mgp", "index", "kgen", "pop", "grt", "mef"})


def _elements(sequence: str) -> list[str]:
    # Brackets nest, and strings hold none.
    parts, depth, start = [], 0, sequence.index("[") + 1
    for i in range(start, len(sequence)):
        letter, before = sequence[i], sequence[i - 1]
        if letter in "<[(":
            depth += 1
        elif letter in ">])" and not (letter == ">" and before == "-"):
            depth -= 1
        if (letter == "," and depth == 0) or depth < 0:
            parts.append(sequence[start:i].strip())
            start = i + 1
            if depth < 0:
                break
    return parts
