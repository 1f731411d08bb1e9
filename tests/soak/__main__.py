"""``python -m tests.soak``: soaks servers of tiny models, and prints the figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.soak.run import KILLS, LEAST, Report, kill, shares, soak
from tests.soak.server import SETTINGS
from workbench.record import origin, place, write


def hardware() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in info if "model name" in line]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=120, help="at most, of load")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--json", type=place, help="where to write the figures")
    options = parser.parse_args()
    settings = list(dict.fromkeys(options.settings))
    least = LEAST * len(settings)
    if options.requests < least:
        parser.error(
            f"--requests {options.requests} are too few to say anything: give {least} "
            f"or more, {LEAST} for each of {', '.join(settings)}"
        )
    made = origin("max") | {"hardware": hardware(), "settings": settings}
    report = Report()
    try:
        for name, share in zip(
            settings, shares(options.requests, len(settings)), strict=True
        ):
            minutes = options.minutes / len(settings)
            run(name, share, minutes, report)
    except KeyboardInterrupt:
        report.wrong.append("interrupted")
    finally:
        figures = made | {"requests": options.requests} | vars(report)
        write(options.json, figures)
        print(json.dumps(figures, indent=1), report.markdown(), sep="\n\n")
        print(*report.stopped, *report.wrong, sep="\n")
    return 1 if report.wrong else 0


def run(name: str, requests: int, minutes: float, report: Report) -> None:
    """Soaks a server, then kills others; what goes wrong with one ends no other."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        with report.noting(name):
            asyncio.run(soak(folder, name, requests, minutes, report))
        for what in KILLS:
            with report.noting(f"{name}, its {what} killed"):
                asyncio.run(kill(folder, name, what, report))


if __name__ == "__main__":
    sys.exit(main())
