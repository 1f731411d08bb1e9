"""Draw a report of ``benchmarks/cpu.py``: each measure as a ratio to llama.cpp.

    python -m benchmarks.plot REPORT.json PICTURE.png

Prints it too, as a table in Markdown: tokens a second, and the ratio in brackets.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from benchmarks.models import SHAPES
from benchmarks.report import MEASURES, ratios

LABELS = {
    "prefill": "prefill 512",
    "decode": "decode",
    "decode_deep": "decode at 4,096",
    "decode_batch": "batch of 8",
    "end_to_end": "decode, end to end",
}


def models_of(report: dict) -> list[str]:
    """Returns the models of a report, from the smallest."""
    models = [name for name, value in report.items() if isinstance(value, dict)]
    return sorted(models, key=lambda name: list(SHAPES).index(name.split()[0]))


def rows_of(report: dict) -> list[tuple[str, str, str]]:
    """Returns a label, a model and an engine, for each of max_mistral's modes."""
    rows = []
    for name in models_of(report):
        rows.append((name, name, "max_mistral"))
        if "exact" in report[name]:
            rows.append((f"{name}, exact", name, "exact"))
    return rows


def markdown(report: dict) -> str:
    """Returns the medians of max_mistral, with their ratios to llama.cpp."""
    lines = ["| model | " + " | ".join(LABELS.values()) + " |", "|---" * 6 + "|"]
    for label, name, engine in rows_of(report):
        cells = [
            f"{statistics.median(report[name][engine][measure]):.3g} "
            f"({ratios(report[name], engine, measure):.2f}x)"
            for measure in LABELS
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(report: dict, target: Path) -> None:
    """Writes the picture: a group of bars for each model."""
    rows = rows_of(report)
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    width = 0.8 / len(MEASURES)
    for i, measure in enumerate(MEASURES):
        heights = [ratios(report[name], engine, measure) for _, name, engine in rows]
        places = [x + (i - (len(MEASURES) - 1) / 2) * width for x in range(len(rows))]
        axes.bar(places, heights, width, label=LABELS[measure])
    axes.axhline(1, color="black", linewidth=0.8)
    labels = [label.replace(" ", "\n") for label, _, _ in rows]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("speed / llama.cpp's")
    axes.set_title(f"max_mistral on {report['cpu']}, 2 threads", fontsize=10)
    axes.legend(fontsize=8, ncols=len(MEASURES), loc="upper center")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    figure.savefig(target, dpi=130)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    report = json.loads(source.read_text())
    draw(report, target)
    print(markdown(report))


if __name__ == "__main__":
    main()
