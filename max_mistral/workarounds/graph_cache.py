"""Compiled graphs, found in MAX's cache at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from max.engine import CompiledModel, InferenceSession
from max.graph import Graph


def find_at_once(session: InferenceSession) -> None:
    """Has ``session`` find a compiled graph in MAX's cache in no time, on a CPU.

    MAX 26.7 puts what it knows of all its kernels into a graph before it looks for
    it in its cache, seconds of work for each graph. Into a module of graphs it puts
    nothing, so a graph is handed over as its module. One that is not in the cache
    takes as long to compile as before.

    Args:
        session: Where it is to be so; nothing changes for one that has a GPU, on
            which nobody has tried it.
    """
    if not all(device.is_host for device in session.devices):
        return
    compile_any = session.compile

    def compile_module(
        model: Any, *, custom_extensions: Any = None, **options: Any
    ) -> CompiledModel:
        if isinstance(model, Graph):
            given = custom_extensions or ()
            given = [given] if isinstance(given, str | Path) else given
            custom_extensions = [*given, *model.kernel_libraries_paths]
            model = model.module
        return compile_any(model, custom_extensions=custom_extensions, **options)

    patched: Any = session
    patched.compile = compile_module
