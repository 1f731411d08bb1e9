"""``python -m tests.soak``: soaks servers of tiny models, and prints the figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.soak.run import KILLS, Report, kill, soak
from tests.soak.server import SETTINGS


def hardware() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in info if "model name" in line]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=120, help="at most, of load")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    settings = list(options.settings)
    report = Report()
    for name in settings:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / "model"
            share = options.requests // len(settings)
            minutes = options.minutes / len(settings)
            asyncio.run(soak(folder, name, share, minutes, report))
            for what in KILLS:
                asyncio.run(kill(folder, name, what, report))
    figures = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "max": version("max"),
        "settings": settings,
    } | vars(report)
    text = json.dumps(figures, indent=1)
    print(text, report.markdown(), sep="\n\n")
    if options.json:
        options.json.write_text(text + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
