"""The report of ``scripts/check_gpu.py``: ``report.md``, and all data in a JSON.

Imports nothing but Python's own and what imports no more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.gpu_compare import comparison
from scripts.gpu_run import Result
from scripts.gpu_steps import Step
from workbench import record


def write(
    out: Path,
    every: list[Step],
    made: Mapping[str, str],
    found: Mapping[str, Result],
) -> None:
    """Writes the report anew, whole.

    Args:
        out: The folder.
        every: The steps, in their order.
        made: What was checked, and on what.
        found: The results that there are.
    """
    figures = figures_of(every, found)
    lines = ["# What a GPU check found", ""]
    lines += [
        f"On {made['gpu']}, at commit {made['commit']}, with MAX {made['max']}.",
        "",
        "| step | question | answer | seconds |",
    ]
    lines.append("|---|---|---|---|")
    for step in every:
        result = found.get(step.name)
        answer = "not asked |"
        if result:
            # A bar would end the cell.
            answer = result.answer.replace("|", "/") + f" | {result.seconds:.0f}"
        lines.append(f"| {step.name} | {step.question} | {answer} |")
    if table := comparison(figures):
        lines += ["", "## Side by side", "", *table]
    for name, result in found.items():
        if not result.command:  # it was not begun
            continue
        lines += ["", f"## {name}", "", f"    {result.command}", "", "```"]
        lines += [result.output[-2000:].replace("```", "'''"), "```"]
    values = {name: asdict(result) for name, result in found.items()}
    whole = {**made, "steps": values, "figures": figures}
    record.write(out / "report.json", whole)
    record.write_text(out / "report.md", "\n".join(lines) + "\n")


def figures_of(every: list[Step], found: Mapping[str, Result]) -> dict[str, Any]:
    """Returns what steps have written as JSON, by their names.

    Also of one that was ended before it had all.
    """
    figures = {}
    for step in every:
        if step.figures is not None and step.name in found:
            with suppress(OSError, ValueError):  # not there, or not whole
                figures[step.name] = json.loads(step.figures.read_text())
    return figures


def read(out: Path, made: Mapping[str, str]) -> dict[str, Result]:
    """Returns the results of an earlier run; exits if that was on other terms.

    None of a tree that differed from its commit or has none: nothing says in what.
    """
    path = out / "report.json"
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    for key, now in made.items():
        if (then := values.get(key, "not said")) != now:
            sys.exit(
                f"{path} has results of another {key}: {then}. Here it is {now}. To "
                "begin anew, remove that file, or give another folder with --out."
            )
    if made["commit"] == "unknown" or made["commit"].endswith("-dirty"):
        print(
            f"{path} has results of {made['commit']}, whose changes may be others than "
            "those of now. Every step asked for runs again; the report begins anew.",
            flush=True,
        )
        return {}
    return {name: Result(**v) for name, v in values["steps"].items()}
