"""The most that the CPU does, and which part of it a model took.

A prefill multiplies, a decode reads all weights once a step: no code is faster than the
CPU's own instructions and its memory. ``peak.cpp`` measures those before each measure.
A shared machine's memory is faster at one minute than at another, so a part of it may
come out above 1.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from benchmarks.measure import DECODES, PREFILLS

SOURCE = Path(__file__).with_name("peak.cpp")
READ = "read"
"""Bytes of memory a second; the other peaks are operations a second."""
Peaks = dict[str, float]
Most = dict[str, list[Peaks]]
"""By measure, the peaks before it, a round each."""


def built(folder: Path) -> Path:
    """Returns the program that measures the peaks, compiled if it is not there."""
    program = folder / "peak"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("c++")
    if compiler is None:
        sys.exit("There is no C++ compiler (c++): install one, such as Debian's g++.")
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-std=c++17", "-march=native", "-pthread"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def peaks(program: Path) -> Peaks:
    """Returns what two threads read and multiply at most, a second."""
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    lines = map(str.split, done.stdout.splitlines())
    return {name: float(value) for name, value in lines}


def work(folder: Path, gguf: Path) -> dict[str, float]:
    """Returns what a model has to do.

    Args:
        folder: Has its config.json.
        gguf: Its weights.

    Returns:
        The operations of each of ``PREFILLS``, a token, a multiply-add as two; and the
        bytes of weights that a decode reads, a step: all but the embedding.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = [t for t in GGUFReader(gguf).tensors if t.name != "token_embd.weight"]
    matrices = {t.name: math.prod(t.shape) for t in tensors if len(t.shape) > 1}
    # Of a prompt, for its last token alone.
    head = int(matrices.pop("output.weight"))
    layers = int(sum(matrices.values()))
    found = {}
    for name, tokens in PREFILLS.items():
        # Each query meets the keys up to its own, each probability a value.
        attention = config["num_hidden_layers"] * config["hidden_size"] * (tokens + 1)
        found[name] = 2.0 * (layers + attention + head / tokens)
    return found | {READ: float(sum(t.n_bytes for t in tensors))}


def multiplied(encoding: str, engine: str) -> str:
    """Returns which numbers an engine of ours multiplies, ``max_mistral`` or ``exact``.

    Args:
        encoding: Of the weights.
        engine: Which.
    """
    if engine == "exact":
        return "float32"
    return "bfloat16" if encoding == "bf16" else "int8"


def shares(
    row: Mapping[str, Any], encoding: str, engine: str = "max_mistral"
) -> dict[str, float]:
    """Returns which part of the CPU's peak each measure took, the median of the rounds.

    A report of before there were peaks has none, nor numbers that the CPU has no
    instruction for.
    """
    most, todo = row.get("peaks"), row.get("work")
    if not most or not todo:
        return {}
    numbers = multiplied(encoding, engine)
    found = {}
    for name in (*PREFILLS, *DECODES):
        if name not in row[engine]:
            continue
        if name in PREFILLS:
            kind, each = numbers, todo[name]
        else:
            kind, each = READ, todo[READ] / DECODES[name][0]
        if kind in most[name][0]:
            pairs = zip(row[engine][name], most[name], strict=True)
            parts = [rate * each / peak[kind] for rate, peak in pairs]
            found[name] = statistics.median(parts)
    return found
