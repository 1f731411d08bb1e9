"""What is measured on: the processor, and the two CPUs of it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def cpu_name() -> str:
    """Returns the processor's name, what of it is known, and the cores seen."""
    known = dict(re.findall(r"(.+?)\s*: (.*)", Path("/proc/cpuinfo").read_text()))
    name = known.get("model name", platform.processor())
    if "cpu family" in known:
        name += f" (family {known['cpu family']}, model {known['model']})"
    return f"{name}, {os.cpu_count()} cores"


def take_two_cpus() -> list[int]:
    """Keeps this process and those that it starts on two CPUs; returns them.

    llama.cpp and torch run two threads, and MAX as many as it may use CPUs: so all
    have the same. Returns none where the system has no such thing, as macOS.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    # Of two cores: two threads of one would share what it computes with.
    firsts = {_core(cpu): cpu for cpu in reversed(allowed)}
    chosen = sorted(firsts.values())[:2]
    if len(chosen) < 2:
        chosen = allowed[:2]
    os.sched_setaffinity(0, chosen)
    return chosen


def _core(cpu: int) -> str:
    """Returns what the threads of one core have in common."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
