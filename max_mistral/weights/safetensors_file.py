"""The header of a safetensors file: where each tensor is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .stored import Stored


def stored_tensors(paths: Sequence[Path]) -> dict[str, Stored]:
    """Returns where each tensor is; raises a ``UserError`` at a truncated file.

    MAX maps the files without looking at their length and would read whatever
    lies beyond the end. A safetensors file is a little-endian uint64 ``n``,
    ``n`` bytes of JSON, then the data that the JSON's offsets point into.
    """
    stored: dict[str, Stored] = {}
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(header_size, size)))
                header.pop("__metadata__", None)
                spans = {name: t["data_offsets"] for name, t in header.items()}
                end = max(span[1] for span in spans.values())
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} is not a complete safetensors file (its header "
                    "cannot be read). Fetch it again."
                ) from error
        if 8 + header_size + end != size:
            raise UserError(
                f"{path} is not a complete safetensors file: it has {size} "
                f"bytes, its header makes it {8 + header_size + end}. Fetch it "
                "again."
            )
        stored |= {
            name: Stored(path, 8 + header_size + start, stop - start)
            for name, (start, stop) in spans.items()
        }
    return stored
