"""How much memory this machine, or the container on it, has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class _Files:
    """What the files of a control group are called; Linux' ``cgroup-v1`` and ``-v2``.

    Of ``memory.stat`` those lines that are page cache, which gives way to programs.
    """

    limit: str
    usage: str
    cache: tuple[str, ...]


_V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def free_memory(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """Returns the bytes that programs may still take.

    They are the least that the machine and the control groups of this process have
    left, one around the other, as a container's or a service's. MAX's own count is
    the machine's alone.

    Args:
        groups: Where the control groups are mounted.
        own_groups: The file that says in which ones this process is.
    """
    left = [int(psutil.virtual_memory().available)]
    for folder, files in _groups_of(groups, own_groups):
        with suppress(OSError, ValueError):  # it has no limit, or "max"
            left.append(_left(folder, files))
    return max(min(left), 0)


def _groups_of(groups: Path, own_groups: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of this process's groups and of those around them."""
    try:
        lines = own_groups.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            mounts, files = [groups / "memory"], _V1
        elif number == "0":
            # The second is where systemd mounts both versions.
            mounts, files = [groups, groups / "unified"], _V2
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, of which the mount is the end.
        steps = [] if ".." in inner.parts else [inner, *inner.parents]
        for mount in mounts:
            for step in steps or [PurePosixPath()]:
                yield mount / step, files


def _left(folder: Path, files: _Files) -> int:
    """What a group has left; page cache is given up for programs.

    The active part, too, as Linux counts for the machine itself: an earlier server's
    mapped weights are there, which the next one shares.
    """
    limit = int((folder / files.limit).read_text())
    used = cache = 0
    with suppress(OSError, ValueError):
        used = int((folder / files.usage).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in files.cache:
                cache += int(value)
    return limit - max(used - cache, 0)
