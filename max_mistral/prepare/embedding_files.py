"""What a folder has of how its model embeds texts: sentence-transformers' files."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..fields import read_json, refuse_large

_MODULES = "modules.json"
# modules.json names the folders; the Pooling's config says how the model pools.
_BESIDE = ("sentence_bert_config.json", "*_Pooling/config.json")
_TOKENIZER = "tokenizer_config.json"
_ENDS = "add_eos_token"


def copy_embedding_files(source: Path, folder: Path, lora: Path | None) -> list[str]:
    """Copies how a model embeds into its new folder.

    Args:
        source: The checkpoint's folder.
        folder: The new folder.
        lora: The folder of the adapter that is merged, whose files come first.

    Returns:
        A line for the user if the adapter's texts end otherwise than the checkpoint's.
    """
    folders = [source] if lora is None else [lora, source]
    for each in folders:
        if (each / _MODULES).is_file():
            patterns = (_MODULES, *_BESIDE)
            found = [path for pattern in patterns for path in each.glob(pattern)]
            # A link may be to a device, whose bytes do not end.
            for path in filter(Path.is_file, found):
                refuse_large(path)
                copy = folder / path.relative_to(each)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
            break
    if lora is None or not (lora / _TOKENIZER).exists():
        return []
    theirs, ours = (
        bool(read_json(each / _TOKENIZER).get(_ENDS))
        if (each / _TOKENIZER).exists()
        else False
        for each in (lora, folder)
    )
    if theirs == ours:
        return []
    return [
        f"{_TOKENIZER} of the adapter has {_ENDS} = {theirs}, of the base {ours}. It "
        "counts for embeddings alone: if the adapter makes some, change it in the new "
        "folder."
    ]
