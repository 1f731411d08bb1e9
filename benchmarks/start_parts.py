"""Runs ``max`` with clocks around the parts of its start; see ``start.py``.

    python -m benchmarks.start_parts generate --custom-architectures max_mistral ...

Prints JSON: the seconds of each. Imports nothing before the clock of imports runs,
and nothing that takes time before ``max`` starts this process anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTS = "Python, imports of MAX and ours"
# What is timed: a module and a name in it.
PARTS = {
    "the model's graph": ("max_mistral.model", "MistralModel.load_model"),
    "weights read, checked, packed": (
        "max_mistral.model",
        "MistralModel._load_state_dict",
    ),
    "the samplers' graphs": ("max_mistral.lookup.samplers", "load_samplers"),
    "first token": ("max.pipelines.lib.generate", "GenerateIterator.step"),
}


def time_parts(arguments: list[str]) -> None:
    """Runs ``max`` in this process with clocks around its parts; prints them."""
    # MAX replaces this process by one with another allocator. It does so as its first
    # step: later, all imports would be done twice, and the system still count from
    # the first beginning. In the new process this returns.
    import_module("max._entrypoints.allocator").reexec_with_jemalloc()
    # The process's own start, as the system has it: Python's is a part too.
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    born = ticks / os.sysconf("SC_CLK_TCK")
    sys.modules["torch"] = None  # type: ignore[assignment]  # see benchmarks/start.py
    max_main = import_module("max._entrypoints.pipelines").main
    import_module("max_mistral.arch")

    seconds: dict[str, float] = defaultdict(float)
    seconds[IMPORTS] = time.clock_gettime(time.CLOCK_BOOTTIME) - born

    def timed(label: str, function: Any) -> Any:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[label] += time.perf_counter() - began

        return run

    for label, (module, name) in PARTS.items():
        *owners, last = name.split(".")
        owner: Any = import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, last, timed(label, getattr(owner, last)))
    sys.argv = ["max", *arguments]
    try:
        max_main()
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(seconds))


if __name__ == "__main__":
    time_parts(sys.argv[1:])
