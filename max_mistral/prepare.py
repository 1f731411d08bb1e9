"""Makes a folder that MAX loads out of a checkpoint it does not.

    python -m max_mistral.prepare SRC.gguf DST

writes config.json, the tokenizer with its chat template, and float32
safetensors into the new folder DST.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from .errors import UserError
from .weights.gguf import GGUFCheckpoint
from .weights.gguf_tokenizer import write_tokenizer

_SHARD_BYTES = 2 * 1024**3


def prepare(source: Path, destination: Path) -> None:
    """Writes the folder ``destination`` from the GGUF file ``source``.

    The folder appears whole or not at all.

    Raises:
        UserError: (a ``ValueError``) if ``source`` is missing or of a kind
            that is not supported, or ``destination`` exists.
    """
    if not source.is_file():
        raise UserError(f"{source} is not a file. Give the path of a GGUF file.")
    if destination.exists():
        raise UserError(
            f"{destination} exists already. Remove it or name another folder."
        )
    checkpoint = GGUFCheckpoint(source)
    config = checkpoint.config()
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(checkpoint, partial)
    _write_weights(checkpoint, partial)
    partial.rename(destination)


def _write_weights(checkpoint: GGUFCheckpoint, folder: Path) -> None:
    names: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        save_file(shard, folder / f"part-{len(names):05d}", {"format": "pt"})
        names.append(list(shard))
        shard.clear()

    for name, values in tqdm(
        checkpoint.tensors(),
        desc="Converting weights",
        unit=" tensors",
        disable=None,  # no bar where no one sees it move
    ):
        shard[name] = np.ascontiguousarray(values)
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            flush()
    if shard:
        flush()
    _name_shards(folder, names)


def _name_shards(folder: Path, names: list[list[str]]) -> None:
    if len(names) == 1:
        (folder / "part-00000").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(names):
        file = f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        (folder / f"part-{i:05d}").rename(folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m max_mistral.prepare",
        description="Make a folder that MAX loads out of a GGUF file.",
    )
    parser.add_argument("source", type=Path, help="a GGUF file")
    parser.add_argument("destination", type=Path, help="the folder to make")
    arguments = parser.parse_args()
    try:
        prepare(arguments.source, arguments.destination)
    except UserError as error:
        parser.exit(1, f"Error: {error}\n")
    print(f"{arguments.destination} is ready.")


if __name__ == "__main__":
    main()
