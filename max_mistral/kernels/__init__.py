"""Mojo kernels for linear layers and attention on a CPU, and packed weights."""

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from .. import switches
from ..switches import chosen
from .compiler import compiled

KernelMode = Literal["on", "exact", "portable", "off"]


def mode() -> KernelMode:
    """Returns the environment's ``MAX_MISTRAL_KERNELS``.

    - ``on``, the default: activations are rounded where that makes the CPU
      faster, to bfloat16 beside bfloat16 weights (AVX512-BF16, AMX) and to int8
      beside quantized ones (any x86 with AVX2, Arm with the dot product), as
      llama.cpp does; the KV cache is bfloat16, and beside it so are queries and
      the weights of values (AVX512-BF16).
    - ``exact``: activations and KV cache stay float32.
    - ``portable``: so too, in tiles of 16 registers and without AVX512-BF16, as
      CPUs without AVX-512 run them.
    - ``off``: weights are float32 in memory and MAX's own operations run.

    Raises:
        UserError: (a ``ValueError``) for another value.
    """
    found: Any = chosen(switches.KERNELS, *get_args(KernelMode))
    return found


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers (x86's AVX512-BF16)."""
    return "avx512_bf16" in _cpu_flags()


@functools.cache
def has_amx() -> bool:
    """Whether this process may multiply bfloat16 numbers by x86's AMX.

    Asks Linux for it, which has to keep 8 KiB more of each thread that uses it.
    """
    if not {"avx512f", "amx_tile", "amx_bf16"} <= _cpu_flags():
        return False
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux refuses it before
    # version 5.16, and where a thread's stack for signals is too small.
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What /proc/cpuinfo calls what the CPU can; empty where that is not x86."""
    # MAX runs on x86 under Linux only.
    known = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not known.exists():
        return frozenset()
    for line in known.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(flags.split())
    return frozenset()


def library() -> Path:
    """Returns the compiled kernels, a ``.mojoc`` file; compiles them if needed.

    Raises:
        UserError: (a ``ValueError``) if MAX's toolchain cannot compile them.
    """
    return compiled(
        Path(__file__).parent, hint="MAX_MISTRAL_KERNELS=off runs without them."
    )
