"""Makes a folder that MAX loads out of a checkpoint it does not.

    python -m max_mistral.prepare SRC DST

SRC is a GGUF file, or a folder in Mistral's own format (``params.json``,
``consolidated*.safetensors``, ``tekken.json`` or ``tokenizer.model*``), or a
Hugging Face folder whose only weights are ``consolidated*.safetensors``. The
new folder DST gets config.json and the tokenizer with its chat template. It
links to the shards of SRC; a GGUF file stays where it is, for --weight-path.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, shown
from ..fields import MOST_POSITIONS, read_json
from ..mistral_common_chat import FILES as MISTRAL_TOKENIZERS
from ..weights.gguf_file import GGUFCheckpoint
from . import gguf_config
from .atomic import new_folder
from .gguf_tokenizer import write_tokenizer as write_gguf_tokenizer
from .mistral_tokenizer import find_tokenizer, write_tokenizer
from .native import PARAMS, find_tensors, link_shards, read_config

# What a folder has beside its weights. Mistral's own tokenizer file encodes chats.
_COPIED = (
    *MISTRAL_TOKENIZERS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "hf_quant_config.json",
)


def prepare(
    source: Path, destination: Path, max_position_embeddings: int | None = None
) -> None:
    """Makes the folder ``destination`` from the file or folder ``source``.

    The folder appears whole or not at all. Nothing else is touched.

    Args:
        source: A GGUF file, or a folder with ``consolidated*.safetensors``.
        destination: A folder that does not exist yet.
        max_position_embeddings: The longest sequence in tokens, for a
            ``params.json`` that does not give it.

    Raises:
        UserError: (a ``ValueError``) if ``source`` is missing or of a kind
            that is not supported, or ``destination`` exists.
        OSError: If a file cannot be read or written.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist. Give a GGUF file or a folder.")
    context = max_position_embeddings
    if context is not None and not 1 <= context <= MOST_POSITIONS:
        raise UserError(
            f"max_position_embeddings is {context}; give the longest sequence in "
            f"tokens, from 1 to {MOST_POSITIONS}, or leave it out."
        )
    with new_folder(destination) as folder:
        if source.is_file():
            _prepare_gguf(source, folder, context)
        else:
            _prepare_folder(source, folder, context)


def _prepare_gguf(source: Path, folder: Path, context: int | None) -> None:
    checkpoint = GGUFCheckpoint(source)
    config = gguf_config.read_config(checkpoint)
    if context is not None:
        config["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_gguf_tokenizer(checkpoint, folder)


def _prepare_folder(source: Path, folder: Path, context: int | None) -> None:
    tensors = find_tensors(source)
    if not tensors:
        raise UserError(
            f"{source} has no consolidated*.safetensors. MAX loads a Hugging "
            "Face folder with model*.safetensors as it is; of a GGUF give the "
            "file; .pth files are not supported."
        )
    if (source / "config.json").exists():
        config = read_json(source / "config.json")
        text = config.get("text_config", config)
        if not isinstance(text, dict):
            raise UserError(
                f"{source / 'config.json'} has text_config = {shown(text)}; expected "
                "an object. Copy the file that belongs to the checkpoint."
            )
        if context is not None:
            text["max_position_embeddings"] = context
    elif (source / PARAMS).exists():
        config = read_config(source / PARAMS, context)
    else:
        raise UserError(f"{source} has neither {PARAMS} nor config.json.")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _prepare_tokenizer(source, folder, config)
    link_shards(tensors, folder)


def _prepare_tokenizer(source: Path, folder: Path, config: dict[str, object]) -> None:
    if not (source / "tokenizer.json").exists():
        file = find_tokenizer(source)
        size = write_tokenizer(file, folder)
        if "vocab_size" in config and size != config["vocab_size"]:
            raise UserError(
                f"{file} has {size} tokens, but the model has "
                f"{config['vocab_size']}. Copy the tokenizer that belongs to "
                "the checkpoint."
            )
    for name in _COPIED:
        if (source / name).exists() and not (folder / name).exists():
            shutil.copy(source / name, folder / name)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ``argv`` is that of the process by default."""
    parser = argparse.ArgumentParser(
        prog="python -m max_mistral.prepare",
        description="Make a folder that MAX loads out of a GGUF file or a "
        "folder in Mistral's own format.",
    )
    parser.add_argument(
        "source",
        type=Path,
        help="a GGUF file, or a folder with consolidated*.safetensors",
    )
    parser.add_argument("destination", type=Path, help="the folder to make")
    parser.add_argument(
        "--max-position-embeddings",
        type=int,
        help="the longest sequence in tokens, where the checkpoint does not say",
    )
    arguments = parser.parse_args(argv)
    try:
        prepare(
            arguments.source, arguments.destination, arguments.max_position_embeddings
        )
    except UserError as error:
        parser.exit(1, f"Error: {error}\n")
    except OSError as error:
        parser.exit(1, f"Error: {error.filename}: {error.strerror}.\n")
    if arguments.source.is_file():
        print(f"{arguments.destination} is ready. Start max with")
        # MAX looks for a relative path in the folder.
        paths = arguments.destination, arguments.source.resolve()
        model, weights = (shlex.quote(str(path)) for path in paths)
        print(f"  --model {model} --weight-path {weights}")
    else:
        print(f"{arguments.destination} is ready.")
