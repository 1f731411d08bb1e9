"""Makes a folder that MAX loads out of a checkpoint it does not.

    python -m max_mistral.prepare SOURCE DESTINATION [--lora ADAPTER [--lora-scale X]]

SOURCE is a GGUF file, or a folder in Mistral's own format (``params.json``,
``consolidated*.safetensors``, ``tekken.json`` or ``tokenizer.model*``), or a
Hugging Face folder whose only weights are ``consolidated*.safetensors``, or that
has one of these tokenizers and no ``tokenizer.json``. The new folder DESTINATION
gets config.json and the tokenizer with its chat template. It links to the shards of
SOURCE; a GGUF file stays where it is, for --weight-path.

With --lora, SOURCE may be any Hugging Face folder too, and DESTINATION gets weights
of its own: those of SOURCE with the PEFT adapter in the folder ADAPTER merged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from .. import hf_config
from ..errors import UserError, shown
from ..fields import MOST_POSITIONS, read_json, refuse_large
from ..mistral_common_chat import MISTRAL_TOKENIZERS
from ..other_models import refuse_other_models
from ..weights.gguf_file import GGUFCheckpoint
from . import gguf_config
from .atomic import new_folder
from .embedding_files import copy_embedding_files
from .gguf_tokenizer import write_tokenizer as write_gguf_tokenizer
from .lora.adapter import Change, note_images, read_adapter
from .lora.gguf import merge_gguf
from .lora.plan import read_hf_config, untie
from .lora.safetensors import merge_safetensors
from .mistral_tokenizer import find_tokenizer, refuse_more_tokens, write_tokenizer
from .native import PARAMS, read_config
from .shards import find_shards, find_tensors, link_shards

_TOKENIZER_CONFIG = "tokenizer_config.json"
# What of it holds for a tokenizer that is made anew too.
_KEPT = ("chat_template", "add_eos_token")

# What a folder has beside its weights. Mistral's own tokenizer file encodes chats.
_COPIED = (
    *MISTRAL_TOKENIZERS,
    "tokenizer.json",
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "hf_quant_config.json",
)


# Far beyond any scale that leaves a model of use.
_MOST_LORA_SCALE = 1000.0


def prepare(
    source: Path,
    destination: Path,
    max_position_embeddings: int | None = None,
    lora: Path | None = None,
    lora_scale: float = 1.0,
) -> list[str]:
    """Makes the folder ``destination`` from the file or folder ``source``.

    The folder appears whole or not at all. Nothing else is touched.

    Args:
        source: A GGUF file, or a folder with ``consolidated*.safetensors``; with
            ``lora``, or without ``tokenizer.json``, with ``model*.safetensors`` too.
        destination: A folder that does not exist yet.
        max_position_embeddings: The longest sequence in tokens, whatever the
            checkpoint says; by default what it says.
        lora: A PEFT adapter's folder, to merge into the weights.
        lora_scale: What its low-rank changes are multiplied by.

    Returns:
        Lines for the user: what merging into a quantized GGUF file lost, what of an
        adapter is left out, and where its texts end otherwise.

    Raises:
        UserError: (a ``ValueError``) if ``source`` is missing or of a kind
            that is not supported, ``destination`` exists, or the adapter
            cannot be merged or does not fit.
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
    if not abs(lora_scale) <= _MOST_LORA_SCALE:  # NaN is not
        raise UserError(
            f"lora_scale is {lora_scale}; give a number of at most "
            f"{_MOST_LORA_SCALE:g}, 1 for the adapter as it was trained."
        )
    with new_folder(destination) as folder:
        if source.is_file():
            notes = _prepare_gguf(source, folder, context, lora, lora_scale)
        else:
            if lora is not None:
                _merge_folder(source, folder, context, lora, lora_scale)
            else:
                _link_folder(source, folder, context)
            notes = copy_embedding_files(source, folder, lora)
        return notes if lora is None else notes + note_images(lora)


def _prepare_gguf(
    source: Path, folder: Path, context: int | None, lora: Path | None, scale: float
) -> list[str]:
    if source.suffix != ".gguf":
        raise UserError(
            f"{source} does not end in .gguf, in small letters, by which MAX knows a "
            "GGUF file. If it is one, rename it."
        )
    checkpoint = GGUFCheckpoint(source)
    config = gguf_config.read_config(checkpoint)
    if context is not None:
        config["max_position_embeddings"] = context
    write_gguf_tokenizer(checkpoint, folder)
    losses: list[str] = []
    if lora is not None:
        model, changes = _read_changes(source, config, lora, scale)
        losses = merge_gguf(checkpoint, model, changes, folder / source.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return losses


def _merge_folder(
    source: Path, folder: Path, context: int | None, lora: Path, scale: float
) -> None:
    config = _read_config(source, context)
    shards: list[Path] = []
    if (source / "config.json").exists():
        hf_config.check_required_keys(str(source), None)
        shards = find_shards(source, "model")
    shards = shards or find_shards(source, "consolidated")
    if not shards:
        raise UserError(
            f"{source} has neither model*.safetensors nor consolidated*.safetensors. "
            "Give the folder of a checkpoint, or a GGUF file."
        )
    model, changes = _read_changes(source, config, lora, scale)
    _prepare_tokenizer(source, folder, config)
    merge_safetensors(shards, model, changes, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _read_changes(
    source: Path, config: dict[str, Any], lora: Path, scale: float
) -> tuple[PretrainedConfig, dict[str, Change]]:
    """The base's HF config and the adapter's changes; unties ``config`` for them."""
    model = read_hf_config(source, config)
    hf_config.check_supported(hf_config.text_config(model))
    changes = read_adapter(lora, model, scale)
    untie(config, changes)
    return model, changes


def _link_folder(source: Path, folder: Path, context: int | None) -> None:
    config = _read_config(source, context)
    tensors = find_tensors(source)
    if not tensors:
        raise UserError(
            f"{source} has no consolidated*.safetensors. MAX loads a Hugging "
            "Face folder with model*.safetensors and tokenizer.json as it is; of a "
            "GGUF give the file; .pth files are not supported."
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _prepare_tokenizer(source, folder, config)
    link_shards(tensors, folder)


def _read_config(source: Path, context: int | None) -> dict[str, Any]:
    """The config.json of a folder, or what its params.json makes one."""
    if (source / "config.json").exists():
        config = read_json(source / "config.json")
        text = config.get("text_config", config)
        if not isinstance(text, dict):
            raise UserError(
                f"{source / 'config.json'} has text_config = {shown(text)}; expected "
                "an object. Copy the file that belongs to the checkpoint."
            )
        refuse_other_models(str(source / "config.json"), config.get, text.get)
        hf_config.check_raw(str(source / "config.json"), config)
        if context is not None:
            text["max_position_embeddings"] = context
        return config
    if (source / PARAMS).exists():
        return read_config(source / PARAMS, context)
    raise UserError(
        f"{source} has neither {PARAMS} nor config.json. Give a folder that has one, "
        "or a GGUF file."
    )


def _prepare_tokenizer(source: Path, folder: Path, config: dict[str, object]) -> None:
    if not (source / "tokenizer.json").is_file():
        file = find_tokenizer(source)
        size = write_tokenizer(file, folder)
        known = config.get("vocab_size", size)
        # Hugging Face's models may be padded.
        fits = size == known or (source / "config.json").exists()
        if not fits or not isinstance(known, int) or size > known:
            raise UserError(
                f"{file} has {size} tokens, but the model has {known}. Copy the "
                "tokenizer that belongs to the checkpoint."
            )
        refuse_more_tokens(source, size)
        _keep_settings(source, folder)
    for name in _COPIED:
        # A link may be to a device, whose bytes do not end.
        if (source / name).is_file() and not (folder / name).exists():
            refuse_large(source / name)
            # Not the mode: what others may write to is not taken from a cache.
            shutil.copyfile(source / name, folder / name)


def _keep_settings(source: Path, folder: Path) -> None:
    """Lets what a Hugging Face folder says of its tokenizer count for more."""
    path = source / _TOKENIZER_CONFIG
    if not path.exists():
        return
    theirs, ours = read_json(path), read_json(folder / _TOKENIZER_CONFIG)
    ours |= {key: theirs[key] for key in _KEPT if theirs.get(key) is not None}
    (folder / _TOKENIZER_CONFIG).write_text(json.dumps(ours, indent=2))
