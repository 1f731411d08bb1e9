"""``max-mistral doctor``: what a bug report needs, and nothing about the user."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from huggingface_hub.constants import HF_HUB_CACHE
from max.driver import Accelerator, accelerator_api, accelerator_count

from .. import kernels, switches
from ..errors import UserError
from ..gpu import gpu_architecture
from ..host_memory import free_memory
from ..own_folders import MODELS, cache_roots, is_ours
from ..progress import print_line
from .kernel_check import check_kernels
from .memory import gigabytes
from .program import max_program

_PACKAGES = (
    *("max_mistral", "max", "mojo-compiler", "mistral-common", "transformers"),
    *("tokenizers", "huggingface-hub", "safetensors", "gguf", "numpy", "torch"),
    "nvidia-cublas",
)
# Those that the kernels, or MAX's, have code of their own for.
_CPU_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
_VARIABLES = (
    *switches.ALL,
    *("MODULAR_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME"),
)


def print_report(*, check: bool) -> None:
    """Prints the report as plain text.

    Args:
        check: Whether to compile the CPU kernels and run one.

    Raises:
        UserError: (a ``ValueError``) at the end, if the check fails.
    """
    for name, lines in _SECTIONS.items():
        print(f"{name}:", flush=True)
        for line in lines():
            print_line(f"  {without_home(line)}")
    if check:
        print("kernel check:", flush=True)
        print_line(f"  {without_home(check_kernels())}")


def without_home(line: str) -> str:
    """Returns the line with ``~`` for the user's home, which names the user."""
    home = os.path.expanduser("~")
    # No "~" is left of a home that is the root, or of none at all.
    return line if home in ("/", "~") else line.replace(home, "~")


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} is not installed"
    yield f"max command: {max_program() or 'none'}"


def _machine() -> Iterator[str]:
    yield f"{platform.system()} {platform.release()} {platform.machine()}"
    with suppress(OSError):  # not Linux
        yield platform.freedesktop_os_release().get("PRETTY_NAME", "")
    model, features = _cpu()
    yield f"CPU: {model}"
    yield f"CPU features: {' '.join(f for f in _CPU_FEATURES if f in features)}"
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    yield f"threads: {os.cpu_count()}, of which we may use {len(allowed(0))}"
    total = psutil.virtual_memory().total
    yield f"memory: {gigabytes(free_memory())} free of {gigabytes(total)}"


def _cpu() -> tuple[str, set[str]]:
    """The model's name and its features, as Linux or macOS tells them."""
    known = Path("/proc/cpuinfo")
    if not known.exists():
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or "unknown", set()
    fields: dict[str, str] = {}
    for line in known.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    features = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", "unknown"), set(features.split())


def _gpus() -> Iterator[str]:
    count = accelerator_count()
    if not count:
        yield "none that MAX sees"
        return
    yield f"{count} by {accelerator_api()}, {gpu_architecture()}"
    for i in range(count):
        try:
            stats = Accelerator(i).stats
        except Exception as error:  # whatever a broken driver raises is the finding
            yield f"gpu:{i} cannot be opened: {error}"
            continue
        free, total = int(stats["free_memory"]), int(stats["total_memory"])
        yield f"gpu:{i}: {gigabytes(free)} free of {gigabytes(total)}"


def _caches() -> Iterator[str]:
    for root in cache_roots():
        yield _cache("max_mistral", root)
        yield _cache("prepared models", root / MODELS)
    modular = os.environ.get("MODULAR_CACHE_DIR") or "~/.cache/modular"
    yield _cache("MAX", Path(os.path.expanduser(modular)))
    yield _cache("Hugging Face Hub", Path(HF_HUB_CACHE))


def _cache(name: str, folder: Path) -> str:
    if not folder.is_dir():
        return f"{name}: {folder}, not there"
    # A link's own mode says nothing.
    ours = is_ours(folder.resolve())
    owned = "closed to others" if ours else "others may write there"
    size = 0
    for where, _, files in os.walk(folder):
        # A file may go meanwhile; links are to files that are counted elsewhere.
        for file in files:
            path = Path(where, file)
            if not path.is_symlink() and path.exists():
                size += path.lstat().st_size
    return f"{name}: {folder}, {gigabytes(size)}, {owned}"


def _settings() -> Iterator[str]:
    try:
        yield f"kernels: {kernels.mode()}"
    except UserError as error:
        yield f"kernels: {error}"
    for name in _VARIABLES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


_SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": _versions,
    "machine": _machine,
    "GPUs": _gpus,
    "settings": _settings,
    "caches": _caches,
}
