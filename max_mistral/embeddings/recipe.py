"""How a checkpoint's embeddings are meant to be made, where it says so.

Beside the weights, sentence-transformers keeps ``modules.json``, the steps after
the model, and a config of each; a GGUF file has ``pooling_type``. Sources:
sentence-transformers ``models/Pooling.py``; llama.cpp ``llama.h``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from max.pipelines.lib import MAXModelConfig

from ..errors import UserError, shown
from ..fields import read_json
from ..hf_files import find_file
from ..weights.gguf_file import GGUFCheckpoint

_LAST = "lasttoken"
# llama.cpp's ``LLAMA_POOLING_TYPE_*``, but for 0, which leaves it to the user.
_GGUF_POOLING = {1: "mean", 2: "cls", 3: _LAST, 4: "rank"}
# The last token's state needs no normalizing to be normalized.
_STEPS = ("Transformer", "Pooling", "Normalize")


def check_recipe(model: MAXModelConfig) -> None:
    """Raises a ``UserError`` if a checkpoint's embeddings are not the last token's.

    Args:
        model: Where the checkpoint is.
    """
    for path in model.weight_path:
        if path.suffix == ".gguf":
            _check_gguf(model)
            return
    _check_modules(model.model_path, model.huggingface_model_revision)


def _check_gguf(model: MAXModelConfig) -> None:
    for path in model.resolved_weight_paths():
        file = GGUFCheckpoint(path, vocabulary=False)
        key = f"{file.architecture}.pooling_type"
        kind = file.metadata.get(key)
        if kind not in (None, 0, 3):
            name = _GGUF_POOLING.get(kind, kind) if isinstance(kind, int) else kind
            _refuse(str(path), f"{key} = {shown(name)}")


def _check_modules(folder: str, revision: str | None) -> None:
    path = find_file(folder, "modules.json", revision)
    if path is None:
        return
    for module in _read_list(path):
        step = str(module.get("type")).rpartition(".")[-1]
        if step not in _STEPS:
            _refuse(str(path), f"a step of type {shown(module.get('type'))}")
        if step == "Pooling":
            where = module.get("path")
            if not isinstance(where, str) or not re.fullmatch(r"\w[\w.-]*", where):
                raise UserError(
                    f"{path} has a step at {shown(where)}; expected the name of a "
                    "folder beside it. Fetch it again."
                )
            name = f"{where}/config.json"
            config = find_file(folder, name, revision)
            if config is None:
                raise UserError(
                    f"{path} names {shown(name)}, which is not there. Fetch it too."
                )
            for mode in _modes(read_json(config)):
                if mode != _LAST:
                    _refuse(str(config), f"the pooling mode {shown(mode)}")


def _read_list(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Fetch it again."
        ) from error
    if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
        raise UserError(
            f"{path} has {shown(found)}; expected a list of objects. Fetch it again."
        )
    return found


def _modes(pooling: dict[str, Any]) -> list[Any]:
    """The modes that a Pooling step's config turns on, old style or new."""
    if "pooling_mode" in pooling:
        return [pooling["pooling_mode"]]
    prefix = "pooling_mode_"
    return [
        k.removeprefix(prefix)
        for k, on in pooling.items()
        if k.startswith(prefix) and on
    ]


def _refuse(source: str, found: str) -> None:
    raise UserError(
        f"{source} has {found}; max_mistral makes an embedding of the last token's "
        "state, normalized. Serve this model with sentence-transformers."
    )
