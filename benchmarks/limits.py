"""The most that the CPU does, and which part of it a model took.

A prefill multiplies, a decode reads all weights once a step: no code is faster than the
CPU's own instructions and its memory. ``peak.cpp`` measures those before each measure.
A shared machine's memory is faster at one minute than at another, so a part of it may
come out above 1.
"""

from __future__ import annotations

import json
import math
import operator
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

from benchmarks.measure import DECODES, PREFILLS
from max_mistral.kernels.packing import Encoding
from max_mistral.weights.packed import may_be_narrow

SOURCE = Path(__file__).with_name("peak.cpp")
READ = "read"
"""Bytes of memory a second; the other peaks are operations a second."""
Peaks = dict[str, float]
Work = dict[str, float]
Most = dict[str, list[Peaks]]
"""By measure, the peaks before it, a round each."""


def built(folder: Path) -> Path:
    """Returns the program that measures the peaks, compiled if it is not there."""
    program = folder.resolve() / "peak"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("c++")
    if compiler is None:
        sys.exit("There is no C++ compiler (c++): install one, such as Debian's g++.")
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-std=c++17", "-pthread"]
    if platform.machine() == "x86_64":  # other compilers may not know the flag
        flags.append("-march=native")
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def peaks(program: Path) -> Peaks:
    """Returns what two threads read and multiply at most, a second."""
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    lines = map(str.split, done.stdout.splitlines())
    return {name: float(value) for name, value in lines}


def work(folder: Path, gguf: Path) -> Work:
    """Returns what a model has to do.

    Args:
        folder: Has its config.json.
        gguf: Its weights.

    Returns:
        ``linear``: operations of the linear layers that each token of a prompt passes,
        a multiply-add as two; ``head``: of those that only its last token has to: the
        output layer, and of the last block all but keys and values; ``attention``:
        those of a query and one key, and of its probability and one value, in all
        blocks but the last; ``weights``: bytes that a decode step reads, all but the
        embedding; ``kv``: numbers of a token's keys and values.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = [t for t in GGUFReader(gguf).tensors if t.name != "token_embd.weight"]
    matrices = {t.name: math.prod(t.shape) for t in tensors if len(t.shape) > 1}
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    last = {"output.weight"} | {
        name
        for name in matrices
        if name.startswith(f"blk.{layers - 1}.")
        and not name.endswith(("attn_k.weight", "attn_v.weight"))
    }
    head = sum(int(matrices.pop(name)) for name in last)
    kv = layers * hidden * config["num_key_value_heads"] * 2
    return {
        "linear": 2.0 * int(sum(matrices.values())),
        "head": 2.0 * head,
        "attention": 4.0 * (layers - 1) * hidden,
        "weights": float(sum(map(_bytes_read, tensors))),
        "kv": kv / config["num_attention_heads"],
    }


def _bytes_read(tensor: ReaderTensor) -> float:
    """What the kernels read of it, a step."""
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        columns = int(tensor.shape[0])
        bits = 12 if may_be_narrow(Encoding.BF16, columns) else 16
        return tensor.n_bytes * bits / 16
    return float(tensor.n_bytes)


def medians(rounds: Iterable[Peaks]) -> Peaks:
    """Returns the median of each peak."""
    found = list(rounds)
    return {kind: statistics.median(p[kind] for p in found) for kind in found[0]}


def least_seconds(
    measure: str, todo: Work, most: Peaks, encoding: str, engine: str
) -> float | None:
    """Returns the least seconds that a token takes, of whichever request.

    ``None`` if the model multiplies numbers whose peak is not known.

    Args:
        measure: Of ``PREFILLS`` or ``DECODES``.
        todo: What the model has to do.
        most: The CPU's peaks.
        encoding: Of the weights.
        engine: ``max_mistral``, or ``exact``, which multiplies float32.
    """
    exact = engine == "exact"
    if measure in DECODES:
        requests, tokens, _ = DECODES[measure]
        # The KV cache is as wide as what is multiplied.
        read = todo["weights"] / requests + todo["kv"] * tokens * (4 if exact else 2)
        return read / most[READ]
    tokens = PREFILLS[measure]
    attends = "float32" if exact else "bfloat16"
    multiplies = attends if encoding == "bf16" else "int8"
    if attends not in most or multiplies not in most:
        return None
    # What only the last token passes is shared by all; a query meets the keys up to its
    # own.
    linear = (todo["linear"] + todo["head"] / tokens) / most[multiplies]
    return linear + todo["attention"] * (tokens + 1) / 2 / most[attends]


def shares(
    row: Mapping[str, Any], encoding: str, engine: str = "max_mistral"
) -> dict[str, float]:
    """Returns which part of the CPU's peak each measure took, the median of the rounds.

    A report of before there were peaks has none.
    """
    if "peaks" not in row:
        return {}
    found = {}
    for name, rounds in row["peaks"].items():
        if name not in row[engine]:
            continue
        least = [
            least_seconds(name, row["work"], most, encoding, engine) for most in rounds
        ]
        if None not in least:
            parts = map(operator.mul, row[engine][name], least)
            found[name] = statistics.median(parts)
    return found
