"""The command line of ``max-mistral prepare`` and ``python -m max_mistral.prepare``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, describe
from ..progress import print_line
from ..weights.safetensors_file import UNSOUGHT, read_tensors
from . import prepare
from .shards import find_shards


def main(
    argv: Sequence[str] | None = None, program: str = "python -m max_mistral.prepare"
) -> None:
    """The command line.

    Args:
        argv: By default the process's.
        program: How it was called, for its usage.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Make a folder that MAX loads out of a GGUF file or a "
        "folder in Mistral's own format, or merge an adapter into a checkpoint.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a GGUF file, or a folder with consolidated*.safetensors; with --lora, "
        "or without tokenizer.json, with model*.safetensors too",
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", type=Path, help="the folder to make"
    )
    parser.add_argument(
        "--max-position-embeddings",
        metavar="TOKENS",
        type=int,
        help="the longest sequence in tokens, whatever the checkpoint says",
    )
    parser.add_argument(
        "--lora",
        metavar="ADAPTER",
        type=Path,
        help="the folder of a PEFT adapter, to merge",
    )
    parser.add_argument(
        "--lora-scale",
        metavar="SCALE",
        type=float,
        help="what the adapter's changes are multiplied by (1)",
    )
    arguments = parser.parse_args(argv)
    if arguments.lora is None and arguments.lora_scale is not None:
        parser.error("--lora-scale is for --lora")
    try:
        notes = prepare(
            arguments.source,
            arguments.destination,
            arguments.max_position_embeddings,
            arguments.lora,
            1.0 if arguments.lora_scale is None else arguments.lora_scale,
        )
        command = _command(
            arguments.source, arguments.destination, arguments.lora is not None
        )
    except UserError as error:
        parser.exit(1, f"Error: {error}\n")
    except OSError as error:
        parser.exit(1, f"Error: {describe(error)}\n")
    for note in notes:
        print(note)
    print_line(f"{arguments.destination} is ready. Start it on a CPU with")
    print_line(f"  {shlex.join(command)}")


def _command(source: Path, destination: Path, merged: bool) -> list[str]:
    """The ``max`` that starts what was made, on a CPU."""
    if source.is_file():
        named = [destination / source.name if merged else source]
        encoding = []
    else:
        shards = find_shards(destination, "model")
        dtypes = {tensor.dtype for tensor in read_tensors(shards).values()}
        named = shards if UNSOUGHT & dtypes else []
        encoding = ["--quantization-encoding", "float32"]
    embeds = (destination / "modules.json").exists()
    start, ask = ["max", "generate"], ["--prompt", "Hello"]
    if embeds:
        start, ask = ["max", "serve"], ["--task", "embeddings_generation"]
    # MAX looks for a relative path in the folder, and at the suffix, which what a
    # link of the Hub's cache leads to has not.
    weights = [
        part for path in named for part in ("--weight-path", str(path.absolute()))
    ]
    model = ["--custom-architectures", "max_mistral", "--model", str(destination)]
    return [*start, *model, *weights, "--devices", "cpu", *encoding, *ask]
