"""What is picked for a model, and the ``max`` command that follows from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from max.pipelines.modeling.types import PipelineTask
from transformers import PretrainedConfig

from ..arch import ARCHITECTURES
from ..prepare.native import PARAMS
from ..prepare.native import read_config as read_params
from .checkpoint import Checkpoint, is_gguf, read_checkpoint
from .errors import UsageError
from .flags import Flags
from .hub import fetch
from .memory import UTILIZATION, Fit, fit_context, gigabytes, on_cpu
from .model_cache import prepared
from .own_weights import with_own_weights
from .picks import (
    check_quantization,
    is_left_to_max,
    pick_device,
    pick_encoding,
    read_config,
    read_devices,
)

_PLUGIN = "max_mistral"
GENERATES = PipelineTask.TEXT_GENERATION
_MODEL_FLAGS = ("--model", "--model-path")
# They say which model, and how it runs.
_OTHER_MODELS = ("--models", "--config-file")
# Without the second MAX ignores the first.
_ADAPTERS = ("--lora-paths", "--enable-lora")


@dataclass(frozen=True)
class Plan:
    """What is to run."""

    summary: str
    """One line about what was picked."""
    arguments: list[str]
    """Those of ``max``."""


def make_plan(
    subcommand: str, model: str, flags: Flags, say: Callable[[str], None]
) -> Plan:
    """Fetches and prepares MODEL if need be, and picks what the flags leave open.

    Args:
        subcommand: Of ``max``: ``serve`` or ``generate``.
        model: A GGUF file, a folder or a Hub id.
        flags: Those that the user gave.
        say: Is told what takes a while.

    Raises:
        UserError: (a ``ValueError``) if there is no such model or it cannot
            run; of the subclass :class:`UsageError` if a flag contradicts it.
        OSError: If a file cannot be read.
    """
    _refuse_flags(flags)
    path = Path(os.path.expanduser(model))
    if not os.path.lexists(path):
        path = _fetched(model, flags)
    given = flags.values("--weight-path")
    checkpoint = with_own_weights(path, given) if given else read_checkpoint(path)
    folder = _model_folder(checkpoint, flags, say)
    config = read_config(folder)
    if subcommand == "generate":
        _refuse_embeddings(model, config, flags)
    picked: list[str] = []

    def pick(flag: str, value: str | None, *also_called: str) -> None:
        if value is not None and not flags.has(flag, *also_called):
            picked.extend([flag, value])

    if _PLUGIN not in flags.values("--custom-architectures"):
        picked += ["--custom-architectures", _PLUGIN]
    pick(_MODEL_FLAGS[0], str(folder), *_MODEL_FLAGS)
    device = pick_device(flags, gguf=checkpoint.is_gguf)
    devices = read_devices(device)
    pick("--devices", device)
    weights, encoding = pick_encoding(checkpoint, config, devices)
    if given:
        # Absolute, for MAX looks for a relative path in --model.
        weights = checkpoint.weights
    for file in weights:
        picked += ["--weight-path", str(file)]
    if not is_left_to_max(weights, encoding):
        pick("--quantization-encoding", encoding)
    encoding = flags.value("--quantization-encoding") or encoding
    length, fit = flags.value("--max-length"), None
    if length is None:
        kv_format = flags.value("--kv-cache-format")
        fit = fit_context(
            checkpoint,
            config,
            devices,
            encoding,
            kv_format,
            replicas=int(_number(flags, "--data-parallel-degree", 1, len(devices), 1)),
            utilization=_number(
                flags, "--device-memory-utilization", 0.01, 1, UTILIZATION
            ),
        )
        length = str(fit.context)
    pick("--max-length", length)
    if subcommand == "serve":
        # What requests say, rather than a path in a cache.
        pick("--served-model-name", model)
    summary = _summary(model, device, encoding, length, fit)
    return Plan(summary, [subcommand, *picked, *flags.without("--weight-path")])


def _number(flags: Flags, name: str, low: float, high: float, default: float) -> float:
    """A flag's number; MAX refuses one that is none."""
    try:
        found = float(flags.value(name) or default)
    except ValueError:
        return default
    return found if low <= found <= high else default


def _refuse_flags(flags: Flags) -> None:
    for name in _OTHER_MODELS:
        if flags.has(name):
            raise UsageError(
                f"{name} says itself which model runs and how. Leave it out, or call "
                "max with it rather than max-mistral."
            )
    for name in _ADAPTERS:
        if flags.has(name):
            raise UsageError(
                f"{name} is for adapters that a server loads, which max_mistral does "
                "not. Leave it out, merge the adapter by max-mistral prepare BASE "
                "NEW_FOLDER --lora ADAPTER, and give what that makes as MODEL."
            )


def _fetched(model: str, flags: Flags) -> Path:
    """Returns what is fetched of a Hub id."""
    weights = flags.value("--huggingface-weight-revision")
    revision = flags.value("--huggingface-model-revision")
    if weights not in (None, revision):
        raise UsageError(
            f"--huggingface-weight-revision is {weights}, but of {model} all files are "
            "fetched at one revision. Leave it out, and give "
            "--huggingface-model-revision, which counts for the weights too."
        )
    return fetch(
        model,
        revision,
        partial(_refuse_early, flags),
        force=flags.has("--force-download"),
    )


def _refuse_early(flags: Flags, folder: Path) -> None:
    """Refuses what its config alone says, before gigabytes of weights are fetched.

    Args:
        flags: Those that the user gave.
        folder: A model's, perhaps without weights; or a GGUF file.
    """
    if is_gguf(folder):
        pick_device(flags, gguf=True)
        return
    if flags.has("--weight-path") or flags.has(*_MODEL_FLAGS):
        return  # they may have another config, or encoding
    if (folder / "config.json").exists():
        config = read_config(folder)
        if on_cpu(read_devices(pick_device(flags, gguf=False))):
            check_quantization(config)
    elif (folder / PARAMS).exists():
        read_params(folder / PARAMS)


def _refuse_embeddings(model: str, config: PretrainedConfig, flags: Flags) -> None:
    task = flags.value("--task")
    whole = [arch.name for arch in ARCHITECTURES if arch.task == GENERATES]
    headless = not any(name in whole for name in config.architectures or [])
    if headless or task not in (None, GENERATES.value):
        raise UsageError(
            f"{model} makes embeddings here, and generate is for text. Start a server: "
            f"max-mistral serve {model} --task embeddings_generation"
        )


def _model_folder(
    checkpoint: Checkpoint, flags: Flags, say: Callable[[str], None]
) -> Path:
    """Where config.json and the tokenizer are."""
    given = flags.value(*_MODEL_FLAGS)
    if given is not None:
        folder = Path(given)
        if is_gguf(checkpoint.path) and folder.is_dir():
            if not (folder / "config.json").exists():
                raise UsageError(
                    f"--model is {given}, which has no config.json. Leave --model out, "
                    "for a GGUF file has its config and tokenizer in it."
                )
            return folder
        # What is prepared is another folder.
        if folder.absolute() == checkpoint.path and not checkpoint.prepare:
            return checkpoint.path
        raise UsageError(
            f"--model is {given}, beside MODEL, which is {checkpoint.path}. Leave "
            "--model out; only for a GGUF file may it name a folder with its "
            "config.json and tokenizer."
        )
    if checkpoint.prepare:
        return prepared(checkpoint.path, say)
    return checkpoint.path


def _summary(
    model: str, device: str, encoding: str | None, length: str, fit: Fit | None
) -> str:
    context = f"context {length}"
    if fit is not None:
        limit = "its limit" if fit.context == fit.limit else f"its limit is {fit.limit}"
        context += (
            f" ({limit}; {gigabytes(fit.weights)} of weights, {gigabytes(fit.free)} "
            "of memory free)"
        )
    return f"{model}: {device}, {encoding or 'encoding as in the files'}, {context}"
