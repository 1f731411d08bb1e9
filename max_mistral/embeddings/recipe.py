"""How a checkpoint's embeddings are meant to be made, where it says so.

Beside the weights, sentence-transformers keeps ``modules.json``, the steps after
the model, and a config of each; a GGUF file has ``pooling_type``. Sources:
sentence-transformers ``models/Pooling.py``; llama.cpp ``llama.h``.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from httpx import HTTPError
from max.pipelines.lib import MAXModelConfig

from ..errors import UserError, shown
from ..fields import read_json, read_whole
from ..hf_files import find_file
from ..weights.gguf_file import GGUFCheckpoint

logger = logging.getLogger("max.pipelines")

_LAST = "lasttoken"
# What sentence-transformers does where a Pooling step's config says nothing.
_UNSAID = "mean"
# llama.cpp's ``LLAMA_POOLING_TYPE_*``, but for 0, which leaves it to the user.
_GGUF_POOLING = {1: "mean", 2: "cls", 3: _LAST, 4: "rank"}
# The last token's state needs no normalizing to be normalized.
_STEPS = ("Transformer", "Pooling", "Normalize")


def check_recipe(model: MAXModelConfig) -> None:
    """Raises a ``UserError`` if a checkpoint's embeddings are not the last token's.

    Args:
        model: Where the checkpoint is.
    """
    gguf = any(path.suffix == ".gguf" for path in model.weight_path)
    if gguf and _says_last(model):
        return
    _check_modules(model.model_path, model.huggingface_model_revision)


def _says_last(model: MAXModelConfig) -> bool:
    """Whether a GGUF file says that the last token's state is meant."""
    says = False
    for path in model.resolved_weight_paths():
        file = GGUFCheckpoint(path, vocabulary=False)
        key = f"{file.architecture}.pooling_type"
        kind = file.metadata.get(key)
        if kind not in (None, 0, 3):
            name = _GGUF_POOLING.get(kind, kind) if isinstance(kind, int) else kind
            _refuse(str(path), f"{key} = {shown(name)}")
        says |= kind == 3
    return says


def _check_modules(folder: str, revision: str | None) -> None:
    try:
        path = find_file(folder, "modules.json", revision, must_know=True)
    except (OSError, HTTPError) as error:
        logger.warning(
            "Whether %s makes its embeddings of the last token's state is not known: "
            "the Hub cannot be asked for its modules.json (%s).",
            folder,
            error,
        )
        return
    if path is None:
        return
    poolings = 0
    for module in _read_list(path):
        step = str(module.get("type")).rpartition(".")[-1]
        if step not in _STEPS:
            _refuse(str(path), f"a step of type {shown(module.get('type'))}")
        if step == "Pooling":
            poolings += 1
            _check_pooling(folder, revision, path, module.get("path"))
    if poolings != 1:
        _refuse(str(path), f"{poolings} steps of type 'Pooling'")
    _check_text(folder, revision)


def _check_pooling(
    folder: str, revision: str | None, modules: Path, where: object
) -> None:
    if not isinstance(where, str) or not re.fullmatch(r"\w[\w.-]*", where):
        raise UserError(
            f"{modules} has a step at {shown(where)}; expected the name of a folder "
            "beside it. Fetch it again."
        )
    name = f"{where}/config.json"
    config = find_file(folder, name, revision)
    if config is None:
        raise UserError(
            f"{modules} names {shown(name)}, which is not there. Fetch it too."
        )
    modes = _modes(read_json(config))
    if modes != [_LAST]:
        _refuse(str(config), f"the pooling {' and '.join(map(shown, modes))}")


def _check_text(folder: str, revision: str | None) -> None:
    """Refuses what sentence-transformers would do to a text first."""
    path = find_file(folder, "sentence_bert_config.json", revision)
    if path is not None and read_json(path).get("do_lower_case"):
        raise UserError(
            f"{path} has do_lower_case = true; max_mistral embeds texts as they are. "
            "Serve this model with sentence-transformers."
        )


def _read_list(path: Path) -> list[dict[str, Any]]:
    data = read_whole(path)
    try:
        found = json.loads(data)
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
    prefix = "pooling_mode_"
    modes = pooling.get("pooling_mode") or [
        k.removeprefix(prefix)
        for k, on in pooling.items()
        if k.startswith(prefix) and on
    ]
    return (modes if isinstance(modes, list) else [modes]) or [_UNSAID]


def _refuse(source: str, found: str) -> None:
    raise UserError(
        f"{source} has {found}; max_mistral makes an embedding of the last token's "
        "state, normalized. Serve this model with sentence-transformers."
    )
