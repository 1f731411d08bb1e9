"""List what the graph launches on a GPU, in order, without a GPU.

    python scripts/list_kernels.py              # a block of the plain bfloat16 model
    python scripts/list_kernels.py gptq         # of most cases of check_gpu_compile.py
    python scripts/list_kernels.py gptq --all   # and what is around the blocks
    python scripts/list_kernels.py gptq --uncarried   # see below

compiles the case's tiny model as far as its kernels have names; a minute. A line is
a launch; "+" joins what MAX fused into one. "once" stands before what runs when the
model is loaded, and at no step.

With ``--uncarried`` a block adds its MLP's output itself, as blocks once did. Now the
next block's norm does that in the same kernel: one launch less.

Where cuBLAS runs, a "matmul + ..." is two launches: MAX computes what follows the
product in a kernel of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from max import tree
from max.driver import DeviceSpec

from max_mistral import mistral
from max_mistral.layers import block
from max_mistral.switches import FP8
from scripts.check_gpu_compile import CASES, EMBEDS, Case
from tests.harness import build
from workbench.compiled_ops import COPY, Kernel, compiled_kernels
from workbench.runner import make_pipeline_config
from workbench.virtual import use_virtual_gpus


def kernels_of(case: Case) -> list[Kernel]:
    """Returns the kernels of a case's graph. Once in a process: MAX keeps the GPU."""
    use_virtual_gpus(case.target, case.devices)
    os.environ[FP8] = "keep" if case.keep else "bfloat16"
    devices = [DeviceSpec.accelerator(i) for i in range(case.devices)]
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder))
        model = build(
            make_pipeline_config(
                folder,
                device_specs=devices,
                quantization_encoding=case.encoding,
                max_length=512,
            )
        )
        graph = model.trace(*tree.leaves(model.input_tree()))
        return compiled_kernels(graph, devices)


def is_whole(case: object) -> bool:
    """Whether :func:`kernels_of` has the graph of a case as it would run.

    It knows no flags, no multistage GEMM, and of a model that embeds only what that
    has in common with the others.
    """
    return isinstance(case, Case) and not (
        case.flags or case.multistage or case.config is EMBEDS
    )


def listing(kernels: Iterable[Kernel], *, every: bool) -> Iterator[str]:
    """Yields a line per kernel, and one for each graph or subgraph.

    Args:
        kernels: In their order.
        every: Whether those around the blocks too.
    """
    graph = ""
    for kernel in kernels:
        # Weights have to get to the GPU.
        is_load = kernel.once and kernel.operations == (COPY,)
        if kernel.device.startswith("cpu") or is_load:
            continue
        if not (every or "block" in kernel.graph):
            continue
        if kernel.graph != graph:
            graph = kernel.graph
            yield f"{graph}:"
        yield f"  {'once' if kernel.once else '    '} {kernel.device} {kernel}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = [name for name, case in CASES.items() if is_whole(case)]
    parser.add_argument("case", nargs="?", choices=names, default="bfloat16")
    parser.add_argument("--all", action="store_true", help="not the blocks alone")
    parser.add_argument("--uncarried", action="store_true", help="as blocks once were")
    asked = parser.parse_args()
    if asked.uncarried:
        block.carries_delta = mistral.carries_delta = lambda config: False
    # MAX's compiler prints the names of its files.
    with os.fdopen(os.dup(1), "w") as out, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        case = CASES[asked.case]
        assert isinstance(case, Case)
        kernels = kernels_of(case)
        print(*listing(kernels, every=asked.all), sep="\n", file=out)


if __name__ == "__main__":
    main()
