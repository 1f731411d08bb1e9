"""What a run found, in a file: where it goes, and which code and packages made it.

Imports nothing but Python's own: ``scripts/check_gpu.py`` reads it too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKED = ROOT / "COMMIT"
"""Where ``scripts/pack_gpu.sh`` says it, for what it packs is no git repository."""


def place(text: str) -> Path:
    """Returns the path of a file to write, whose folder is there; for argparse.

    Before anything is measured: what took hours has to have a place.
    """
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"the folder of {path} cannot be made ({error.strerror}): give another path"
        ) from None
    if path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path} is a folder: give the path of a file, such as {path}/report.json"
        )
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"{path.parent} cannot be written to: give a path in another folder"
        )
    return path


def write(path: Path | None, values: Any) -> None:
    """Writes values as JSON, if they are asked for."""
    if path is not None:
        write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there as it was or whole, whenever this is cut off."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def commit() -> str:
    """Returns the commit of this tree, with ``-dirty`` if files differ from it."""
    if PACKED.exists():
        return PACKED.read_text().strip()
    # No tag stands for it, so what is left is its whole name.
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError):
        done = subprocess.run(
            ["git", "-C", str(ROOT), *describe],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return "unknown"


def origin(*packages: str) -> dict[str, Any]:
    """Returns what makes a result: the day, the commit, and versions of packages."""
    found = {"date": time.strftime("%Y-%m-%d"), "commit": commit()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
