"""max_mistral's figures of a GPU beside the other engines', from what steps wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OURS = "max_mistral"
OTHERS = ("MAX", "transformers", "vLLM")
SERVING = {OURS: "serving", "MAX": "serving-max", "vLLM": "serving-vllm"}

Row = dict[str, float]
"""By engine, a figure."""


def comparison(figures: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a table; none if nothing is there to compare.

    Args:
        figures: By step, what it has written: see ``scripts/gpu_steps.py``.
    """
    rows = [*speeds(figures), *served(figures)]
    rows = [(name, row) for name, row in rows if row]
    if not rows:
        return []
    others = [name for name in OTHERS if any(name in row for _, row in rows)]
    heads = [OURS, *(f"{name} | ours / {name}" for name in others)]
    lines = [
        "A ratio above 1 is better in tokens/s and shares of the GPU; below 1 in ms "
        "and GB. MAX and vLLM reserve memory: it is what they were given.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (2 + 2 * len(others)) + "|",
    ]
    for name, row in rows:
        cells = [number(row.get(OURS))]
        for other in others:
            cells.append(number(row.get(other)))
            both = OURS in row and row.get(other)
            cells.append(f"{row[OURS] / row[other]:.2f}" if both else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def number(value: float | None) -> str:
    """Returns a figure to four digits or as a whole number."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def speeds(figures: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Yields what ``benchmarks/gpu.py`` has written of each engine."""
    found = {name: figures.get(f"speed-{name}", {}) for name in (OURS, *OTHERS)}
    rates = {name: each.get("tokens_per_second", {}) for name, each in found.items()}
    for measure in dict.fromkeys(key for each in rates.values() for key in each):
        row = {name: each[measure] for name, each in rates.items() if measure in each}
        yield f"{measure}, tokens/s", row
    memory = {
        name: each["gpu_bytes"] / 1e9
        for name, each in found.items()
        if "gpu_bytes" in each
    }
    yield "the GPU's memory, GB", memory


def served(figures: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Yields what ``benchmarks/serving.py`` has written of ``max serve``."""
    found = {name: figures.get(step, {}) for name, step in SERVING.items()}
    for users in dict.fromkeys(key for each in found.values() for key in each):
        if not users.endswith(" users"):
            continue
        measured = {name: each.get(users, {}) for name, each in found.items()}
        for key in dict.fromkeys(key for each in measured.values() for key in each):
            row = {
                name: each[key]
                for name, each in measured.items()
                if isinstance(each.get(key), int | float)
            }
            yield f"{users}: {key}", row
