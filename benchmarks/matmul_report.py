"""What ``benchmarks/matmul.py`` prints: a table, what is wrong, and all in a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from max_mistral.gpu_matmul.products import Product
from workbench.verdict import cause

Found = Mapping[str, Mapping[str, Any]]
"""By matmul what was found of it, and by ``"ceilings"`` what the GPU reaches."""


def known_ceilings(path: Path) -> dict[str, Any]:
    """Returns what the GPU reaches, as an earlier run of the benchmark wrote it.

    If it did not, why, as ``"failed"``: times are worth something without it.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())["ceilings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {
            "failed": f"{path} does not say what the GPU reaches. To write it: "
            f"python -m benchmarks.matmul --matmuls --json {path}",
            "left_out": True,
        }
    return found


def reached(ceilings: Mapping[str, Any]) -> str:
    """Returns a sentence about what the GPU reaches."""
    if "bytes/s" not in ceilings:
        return "What the GPU reaches was not measured."
    return (
        f"A copy moves {ceilings['bytes/s'] / 1e12:.2f} TB/s, cuBLAS computes "
        f"{ceilings['operations/s'] / 1e12:.0f} TFLOP/s."
    )


def shares(
    ceilings: Mapping[str, Any], products: Iterable[Product], rows: int, seconds: float
) -> tuple[str, str]:
    """Returns what share of memory's speed products take, and of the arithmetic's.

    Each is ``-`` where that is not known.
    """
    if "bytes/s" not in ceilings:
        return "-", "-"
    weights = [(p.columns * p.terms, p.fp8) for p in products]
    bytes_ = sum(numbers * (1 if fp8 else 2) for numbers, fp8 in weights)
    operations = sum(2 * rows * numbers for numbers, _ in weights)
    return (
        f"{bytes_ / seconds / ceilings['bytes/s']:.0%}",
        f"{operations / seconds / ceilings['operations/s']:.0%}",
    )


def report(found: Found, every: Mapping[str, list[Product]]) -> str:
    """Returns what is wrong, and below it the table of what was timed.

    Args:
        found: Of each matmul.
        every: The products of each.
    """
    lines = []
    for matmul, values in found.items():
        if "wrong" in values:
            seconds = f"{values['check_seconds']:.0f} s"
            lines += [f"{matmul} ({seconds}): {'; '.join(values['says']) or 'right'}"]
    timed = [name for name, values in found.items() if "seconds" in values]
    if not timed:
        return "\n".join(lines)
    top = found["ceilings"]
    heads = [f"{m}, ms | of memory | of peak" for m in timed]
    lines += ["", reached(top), "", "| rows | " + " | ".join(heads) + " |"]
    lines.append("|---" * (1 + 3 * len(timed)) + "|")
    for rows in found[timed[0]]["seconds"]:
        cells = [rows]
        for matmul in timed:
            taken = found[matmul]["seconds"][rows]
            cells += [f"{1e3 * taken:.3f}"]
            cells += shares(top, every[matmul], int(rows), taken)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answer(found: Found, every: Mapping[str, list[Product]]) -> str:
    """Returns all in a line: right or wrong, and the times of few and of many rows."""
    top = found.get("ceilings", {})
    matmuls = [name for name in found if name != "ceilings"]
    if not matmuls:
        return cause(top["failed"]) if "failed" in top else reached(top)
    parts = []
    for name in matmuls:
        values, words = found[name], []
        if "failed" in values:
            parts.append(cause(values["failed"]))
            continue
        if "wrong" in values:
            says = f"wrong ({'; '.join(values['says'])})"
            words.append(says if values["wrong"] else "right")
        times = [*values.get("seconds", {}).items()]
        for rows, taken in [*times[:1], *times[1:][-1:]]:
            memory, peak = shares(top, every[name], int(rows), taken)
            share = f" ({memory} of memory, {peak} of peak)" * (memory != "-")
            plural = "row" if rows == "1" else "rows"
            words.append(f"{rows} {plural} {1e3 * taken:.3f} ms{share}")
        parts.append(f"{name}: {', '.join(words)}")
    return "; ".join(parts)
