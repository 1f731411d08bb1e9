"""Draw a report of ``benchmarks/cpu.py``: each measure as a ratio to llama.cpp.

    python -m benchmarks.plot REPORT.json PICTURE.png

Prints it too, as a table in Markdown: tokens a second, and the ratio in brackets (of a
KV cache in 8 bits to llama.cpp with one); then which part of the CPU's most each model
took (``limits.py``), what that most is, how far the rounds' ratios lie apart, and what
made each row.
Reports of before rows said that have one day for all.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.cpu import IK, KV_8_BITS
from benchmarks.limits import READ, medians, shares
from benchmarks.models import SHAPES
from benchmarks.report import MADE, MEASURES, ratios

LABELS = {
    "prefill": "prefill 512",
    "prefill_deep": "prefill 4,096",
    "decode": "decode",
    "decode_deep": "decode at 4,096",
    "decode_batch": "batch of 8",
    "end_to_end": "decode, end to end",
}


def models_of(report: dict) -> list[str]:
    """Returns the models of a report, from the smallest."""
    models = [name for name, value in report.items() if isinstance(value, dict)]
    return sorted(models, key=lambda name: list(SHAPES).index(name.split()[0]))


def rows_of(report: dict, *others: str) -> list[tuple[str, str, str]]:
    """Returns a label, a model and an engine: max_mistral, and ``others`` if there."""
    rows = []
    for name in models_of(report):
        rows.append((name, name, "max_mistral"))
        rows += [(f"{name}, {o}", name, o) for o in others if o in report[name]]
    return rows


def measures_of(report: dict) -> list[str]:
    """Returns the measures that some model of a report has."""
    rows = [report[name]["max_mistral"] for name in models_of(report)]
    return [measure for measure in LABELS if any(measure in row for row in rows)]


def markdown(report: dict) -> str:
    """Returns the medians, with their ratios to llama.cpp."""

    def cell(name: str, engine: str, measure: str) -> str:
        rival = f"llama.cpp, {engine}" if engine == KV_8_BITS else "llama.cpp"
        base = report[name][rival]
        # Of ik_llama.cpp's two layouts the faster one.
        found = [
            (ratios(report[name], e, measure, rival), statistics.median(m[measure]))
            for e, m in report[name].items()
            if e in (engine, f"{engine} -rtr") and measure in m and measure in base
        ]
        return f"{max(found)[1]:.3g} ({max(found)[0]:.2f}x)" if found else ""

    measures = measures_of(report)
    head = ["model", *(LABELS[measure] for measure in measures)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for label, name, engine in rows_of(report, "exact", KV_8_BITS, IK):
        cells = [cell(name, engine, measure) for measure in measures]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts(report: dict) -> str:
    """Returns a table of which part of the CPU's most max_mistral took, as Markdown."""
    found = {
        label: shares(report[name], name.split()[1], engine)
        for label, name, engine in rows_of(report, "exact")
    }
    measures = [m for m in LABELS if any(m in row for row in found.values())]
    head = ["model", *(LABELS[measure] for measure in measures)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for label, row in found.items():
        cells = [f"{row[m]:.0%}" if m in row else "" for m in measures]
        lines += [f"| {label} | {' | '.join(cells)} |"] if row else []
    return "\n".join(lines) if measures else ""


def most(report: dict) -> str:
    """Returns the CPU's most in all rows, as ``docs/speed.md`` says it."""
    rows = [report[name].get("peaks", {}) for name in models_of(report)]
    found = [peaks for row in rows for rounds in row.values() for peaks in rounds]
    if not found:
        return ""
    kinds = [kind for kind in ("bfloat16", "int8", "float32") if kind in found[0]]
    middle = medians(found)
    said = ", ".join(f"{middle[kind] / 1e9:.0f}e9 in {kind}" for kind in kinds)
    read = [peaks[READ] / 1e9 for peaks in found]
    return f"{said}; {min(read):.0f} to {max(read):.0f}e9 bytes a second"


def spread(report: dict) -> str:
    """Returns how far max_mistral's ratios to llama.cpp differ between rounds."""
    found = []
    for name in models_of(report):
        ours, base = report[name]["max_mistral"], report[name]["llama.cpp"]
        for measure in ours.keys() & base.keys() & set(MEASURES):
            pairs = zip(ours[measure], base[measure], strict=True)
            rounds = sorted(value / other for value, other in pairs)
            apart = (rounds[-1] - rounds[0]) / statistics.median(rounds)
            found.append((apart, f"{name}, {LABELS[measure]}", rounds))
    most, where, rounds = max(found)
    median = statistics.median(apart for apart, *_ in found)
    listed = ", ".join(f"{ratio:.2f}x" for ratio in rounds)
    return f"apart: {median:.0%} in the median, at most {most:.0%} ({where}: {listed})"


def made(report: dict, name: str) -> dict[str, Any]:
    """Returns what made a row, as far as the report says it."""
    return report[name].get(MADE) or {"date": report.get("date", "a day unknown")}


def origins(report: dict) -> str:
    """Returns a line for all rows that the same code and packages made."""
    rows = defaultdict(list)
    for name in models_of(report):
        found = [f"{k} {v}" for k, v in made(report, name).items() if k != "cpus"]
        rows[", ".join(found)].append(name)
    return "\n".join(f"{', '.join(names)}: {said}" for said, names in rows.items())


def days(report: dict) -> str:
    """Returns the first day and the last."""
    found = sorted({made(report, name)["date"] for name in models_of(report)})
    return " to ".join(dict.fromkeys([found[0], found[-1]]))


def draw(report: dict, target: Path) -> None:
    """Writes the picture: a group of bars for each model."""
    # Here, as the rest needs none.
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = rows_of(report, "exact")
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    measures = measures_of(report)
    width = 0.8 / len(measures)
    for i, measure in enumerate(measures):
        heights = [
            ratios(report[name], engine, measure)
            if measure in report[name][engine] and measure in report[name]["llama.cpp"]
            else 0.0
            for _, name, engine in rows
        ]
        places = [x + (i - (len(measures) - 1) / 2) * width for x in range(len(rows))]
        axes.bar(places, heights, width, label=LABELS[measure])
    axes.axhline(1, color="black", linewidth=0.8)
    labels = [label.replace(" ", "\n") for label, _, _ in rows]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("speed / llama.cpp's")
    title = f"max_mistral on {report['cpu']}, 2 threads, {days(report)}"
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, ncols=len(measures), loc="upper center")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    figure.savefig(target, dpi=130)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    report = json.loads(source.read_text())
    draw(report, target)
    print(markdown(report))
    print(parts(report))
    print(most(report))
    print(spread(report))
    print(origins(report))


if __name__ == "__main__":
    main()
