"""Safetensors with an adapter merged, tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transformers import PretrainedConfig

from ...errors import UserError
from ...progress import progress
from ...weights.names import find_scheme, find_text_tower, image_towers
from ...weights.safetensors_file import SafeTensor, read_tensors
from ..shards import shard_names, write_index
from .adapter import FLOATS, Change
from .plan import Output, encode, merged, plan

MOST_SHARD = 5 * 10**9
# What the places of tensors are multiples of, as the safetensors library has it.
_ALIGNMENT = 8


def merge_safetensors(
    shards: Sequence[Path],
    config: PretrainedConfig,
    changes: Mapping[str, Change],
    folder: Path,
) -> None:
    """Writes a checkpoint with an adapter merged, in shards of 5 GB at most.

    Args:
        shards: The base's files.
        config: The base's HF config.
        changes: By the tensors' names in the graph.
        folder: Gets ``model*.safetensors`` and, if there are several, the index.

    Raises:
        UserError: (a ``ValueError``) naming what does not fit the config, or is
            no float.
        OSError: If a file cannot be read or written.
    """
    tensors = read_tensors(shards)
    scheme, tower = find_scheme(tensors, config), find_text_tower(tensors)
    images = image_towers(scheme, tower)
    text = {n: t for n, t in tensors.items() if not n.startswith(images)}
    source = str(shards[0].parent)
    outputs = plan(text, config, changes, scheme, tower, source)
    outputs += [Output(n, t) for n, t in tensors.items() if n.startswith(images)]
    for output in outputs:
        if output.change is not None and output.source.dtype not in FLOATS:
            raise UserError(
                f"{output.name} of {source} is {output.source.dtype}; an adapter is "
                f"merged into {', '.join(FLOATS)}."
            )
    groups = _shard(outputs)
    names = shard_names(len(groups))
    for name, group in zip(names, groups, strict=True):
        with (folder / name).open("wb") as file:
            _write_safetensors(file, group)
    if len(groups) > 1:
        weight_map = {
            output.name: name
            for name, group in zip(names, groups, strict=True)
            for output in group
        }
        total = sum(output.source.stored.size for output in outputs)
        write_index(folder, weight_map, {"total_size": total})


def _shard(outputs: Sequence[Output]) -> list[list[Output]]:
    groups: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        size += output.source.stored.size
        if size > MOST_SHARD and groups[-1]:
            groups.append([])
            size = output.source.stored.size
        groups[-1].append(output)
    return groups


def _write_safetensors(file: BinaryIO, outputs: Sequence[Output]) -> None:
    """A little-endian uint64 ``n``, ``n`` bytes of JSON, then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for output in outputs:
        source: SafeTensor = output.source
        start, end = end, end + source.stored.size
        header[output.name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    name = Path(file.name).name
    for output in progress(outputs, f"Merging into {name}", "tensors"):
        if output.change is None:
            output.source.stored.read().tofile(file)
            continue
        ggml_type = FLOATS[output.source.dtype]
        where = str(output.source.stored.path)
        _, values = merged(output, output.change, ggml_type, where)
        encode(values, ggml_type, output.name)[0].tofile(file)
