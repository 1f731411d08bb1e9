"""The header of a safetensors file: what each tensor is, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import UserError, shown
from ..fields import is_no_file, parse_json
from .stored import Stored

# The format's own limit.
_MOST_HEADER = 100_000_000
# More dimensions than any tensor has.
_MOST_RANK = 8

UNSOUGHT = {"F16", "F8_E4M3"}
"""MAX does not look for weights in float16, nor for FP8 on a CPU: they are named."""

# Bits of a number, by the names that the format has.
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class SafeTensor:
    """One tensor as the header describes it."""

    dtype: str
    """As the format calls it: ``"BF16"``."""
    shape: tuple[int, ...]
    stored: Stored


def stored_tensors(paths: Sequence[Path]) -> dict[str, Stored]:
    """Returns where each tensor is; see :func:`read_tensors`."""
    return {name: tensor.stored for name, tensor in read_tensors(paths).items()}


def read_tensors(paths: Sequence[Path]) -> dict[str, SafeTensor]:
    """Returns what each tensor is and where, in one file or several.

    MAX maps the files without a look at the offsets, and would read whatever
    lies there. So each tensor must have just the bytes that its shape and dtype
    take, and all of them one after the other must fill the file.

    Raises:
        UserError: (a ``ValueError``) naming the file that is truncated,
            damaged or no plain file, and the tensor.
        OSError: If a file cannot be read.
    """
    tensors: dict[str, SafeTensor] = {}
    for path in paths:
        for name, tensor in _read_file(path).items():
            if name in tensors:
                raise UserError(
                    f"{name} is in {path} and in {tensors[name].stored.path} too. "
                    "Fetch the checkpoint again."
                )
            tensors[name] = tensor
    return tensors


def _read_file(path: Path) -> dict[str, SafeTensor]:
    """A little-endian uint64 ``n``, ``n`` bytes of JSON, then the tensors."""
    if is_no_file(path):
        raise _incomplete(path, "it is no plain file but a folder, pipe or device")
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, _MOST_HEADER):
            raise _incomplete(path, f"it has {size} bytes, its header {header_size}")
        header = file.read(header_size)
    start = 8 + header_size
    tensors = _parse(path, header, start)
    end = start
    by_place = sorted(
        tensors.items(), key=lambda item: (item[1].stored.offset, item[1].stored.size)
    )
    for name, tensor in by_place:
        first = tensor.stored.offset
        if first != end:
            what = "overlaps the tensor before it" if first < end else "follows a gap"
            raise _incomplete(
                path, f"{name} {what}, at byte {first - start} of the data"
            )
        end += tensor.stored.size
    if end != size:
        raise _incomplete(path, f"it has {size} bytes, its header makes it {end}")
    return tensors


def _parse(path: Path, header: bytes, start: int) -> dict[str, SafeTensor]:
    try:
        tensors = parse_json(header, f"The header of {path}")
    except UserError as error:
        raise _incomplete(path, f"its header cannot be read: {error}") from error
    tensors.pop("__metadata__", None)
    if not tensors:
        raise _incomplete(path, "it has no tensors")
    return {name: _tensor(path, name, found, start) for name, found in tensors.items()}


def _tensor(path: Path, name: str, tensor: Any, start: int) -> SafeTensor:
    fields = tensor if isinstance(tensor, dict) else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    span = fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _incomplete(path, f"{name} is of the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MOST_RANK:
        raise _incomplete(path, f"{name} has the shape {shown(shape)}")
    if not _are_sizes(span) or len(span) != 2:
        raise _incomplete(path, f"{name} has data_offsets = {shown(span)}")
    first, last = span
    bits = math.prod(shape) * _BITS[dtype]
    if 8 * (last - first) != bits:
        raise _incomplete(
            path,
            f"{name} is {dtype} of shape {shown(shape)}, {bits / 8:g} bytes, but has "
            f"{last - first} at data_offsets = {shown(span)}",
        )
    return SafeTensor(dtype, tuple(shape), Stored(path, start + first, last - first))


def _are_sizes(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in found
    )


def _incomplete(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a complete safetensors file: {why}. Fetch it again."
    )
