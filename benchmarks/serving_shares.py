"""What share of a GPU's bandwidth and arithmetic the time between tokens is.

As ``benchmarks/gpu.py`` has it for the model alone: a step reads all weights and the
keys and values of every request, and computes two operations a weight and token.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import matmul
from benchmarks.gpu_shares import share
from benchmarks.matmul_report import known_ceilings
from benchmarks.rounds import in_process

# Flags of the two servers that make the model another than its config.json says, or
# spread it over several GPUs; and the values by which they do not.
OTHERS = [
    *("--weight-path", "--quantization-encoding", "--quantization", "--dtype"),
    *("--tensor-parallel-size", "--pipeline-parallel-size", "--speculative-config"),
    *("--data-parallel-degree", "--data-parallel-size", "--draft-model-path"),
]
SAME = {"bfloat16", "auto", "1"}


def read_flags(flags: list[str]) -> dict[str, str]:
    """Returns what some flags of a server are set to, those that are there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--devices", *OTHERS):
        parser.add_argument(name, dest=name)
    known, _ = parser.parse_known_args(flags)
    return {name: value for name, value in vars(known).items() if value is not None}


def unknown(model: str, flags: list[str]) -> str | None:
    """Returns why it is not known what a step of a model reads; ``None`` if it is."""
    values = read_flags(flags)
    if not re.fullmatch(r"gpu(:\d+)?", devices := values.pop("--devices", "gpu")):
        return f"they are known of one GPU only, and --devices is {devices}"
    for name, value in values.items():
        if value not in SAME:
            return f"{name} {value} makes the model another than its config.json says"
    path = Path(model) / "config.json"
    if not path.exists():
        return f"{model} is no folder with a config.json"
    config = json.loads(path.read_text())
    dtype = config.get("dtype") or config.get("torch_dtype")
    if config.get("model_type") != "mistral" or dtype != "bfloat16":
        return (
            "they are known of Mistral in bfloat16 only, and the config.json is of "
            f"{config.get('model_type')} in {dtype}"
        )
    if "quantization_config" in config:
        return "the model is quantized"
    return None


def find_ceilings(given: Path | None, beside: Path | None = None) -> dict[str, Any]:
    """Returns what this GPU reaches, as :func:`benchmarks.matmul.ceilings` says it.

    Args:
        given: What ``benchmarks.matmul --json`` has written.
        beside: The same, if it is there. Without ``given``, and if it is not there,
            it is measured now.

    Returns:
        Why not, as ``"failed"``, where it is not known.
    """
    if given is None and beside is not None and beside.exists():
        given = beside
    if given is not None:
        return known_ceilings(given)
    try:
        return {**in_process("ceilings", module=matmul.__name__)}
    except SystemExit as end:
        return {"failed": str(end)}


def shares(
    config: dict[str, Any],
    users: int,
    before: int,
    seconds: float,
    ceilings: Mapping[str, float],
) -> dict[str, float]:
    """Returns percents of what the GPU reaches.

    Args:
        config: The model's, of Mistral in bfloat16.
        users: How many requests a step has.
        before: The tokens of each of them before it, in the mean.
        seconds: Between two tokens.
        ceilings: What the GPU reaches.
    """
    read = min(before, config.get("sliding_window") or before)
    found = share(config, users, users, read, seconds, ceilings)
    return {
        "of bandwidth, %": 100 * found["memory"],
        "of peak, %": 100 * found["peak"],
    }
