"""A folder's safetensors: all of them found, or linked under names that MAX takes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..weights.safetensors_file import stored_tensors
from ..weights.stored import Stored

# The largest of the family has 50.
_MOST_SHARDS = 10_000


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Returns the tensors of the shards that ``folder`` is prepared with.

    Those are ``consolidated*.safetensors``, or with a ``config.json``, but no
    ``tokenizer.json``, rather ``model*.safetensors``.

    Raises:
        UserError: (a ``ValueError``) naming the shards of a numbered series
            that are not there, or the truncated file.
    """
    shards: list[Path] = []
    if (folder / "config.json").exists() and not (folder / "tokenizer.json").exists():
        shards = find_shards(folder, "model")
    return stored_tensors(shards or find_shards(folder, "consolidated"))


def find_shards(folder: Path, stem: str) -> list[Path]:
    """Returns the files ``STEM*.safetensors`` of ``folder``, all or none.

    Raises:
        UserError: (a ``ValueError``) naming the shards of a numbered series
            that are not there.
    """
    shards = sorted(folder.glob(f"{stem}*.safetensors"))
    counts = {
        int(match[1])
        for shard in shards
        if (match := re.fullmatch(rf"{stem}-\d+-of-(\d+)", shard.stem))
    }
    for count in counts:
        if count > _MOST_SHARDS:
            raise UserError(
                f"{folder} has a shard that calls itself one of {count}; expected at "
                f"most {_MOST_SHARDS}. Fetch the checkpoint again."
            )
        series = [
            f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
        ]
        missing = [name for name in series if not (folder / name).exists()]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise UserError(
                f"{folder} lacks {', '.join(missing[:10])}{more}. Fetch the rest of "
                "the checkpoint."
            )
    return shards


def link_shards(tensors: Mapping[str, Stored], folder: Path) -> None:
    """Links the tensors' files into ``folder`` under names that MAX looks for.

    MAX passes over files whose name has "consolidated" in it.
    """
    shards = sorted({stored.path for stored in tensors.values()})
    names = shard_names(len(shards))
    if len(shards) > 1 and all(path.name.startswith("model") for path in shards):
        names = [path.name for path in shards]
    links = dict(zip(shards, names, strict=True))
    for shard, link in links.items():
        os.symlink(shard.resolve(), folder / link)
    if len(links) > 1:
        weight_map = {name: links[stored.path] for name, stored in tensors.items()}
        write_index(folder, weight_map, {})


def shard_names(count: int) -> list[str]:
    """Returns the names that Hugging Face's ``save_pretrained`` gives as many files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def write_index(
    folder: Path, weight_map: Mapping[str, str], metadata: Mapping[str, int]
) -> None:
    """Writes which file each tensor is in, by their names."""
    index = {"metadata": dict(metadata), "weight_map": dict(weight_map)}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2))
