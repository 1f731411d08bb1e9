"""MODEL with the weights of --weight-path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..prepare.native import PARAMS
from .checkpoint import Checkpoint, is_gguf, needs_json, read_checkpoint
from .errors import UsageError


def with_own_weights(path: Path, given: Sequence[str]) -> Checkpoint:
    """Returns the model at ``path`` with other weights than one would find there.

    Args:
        path: A GGUF file, or a folder.
        given: What --weight-path is set to, once at least.

    Raises:
        UserError: (a ``ValueError``) if there are no such files, or nothing tells
            their config; of the subclass :class:`UsageError` if ``path`` is
            another file.
    """
    if path.is_dir():
        return _in_folder(path, [_find_file(value, path) for value in given])
    if [Path(value).absolute() for value in given] != [path.absolute()]:
        raise UsageError(
            f"--weight-path is {', '.join(given)}, but MODEL is the file {path}. "
            "Leave --weight-path out, or give as MODEL the folder with config.json."
        )
    return read_checkpoint(path)


def _find_file(value: str, folder: Path) -> Path:
    for path in (Path(value), folder / value):
        if path.is_file():
            return path.absolute()
    raise UserError(
        f"--weight-path is {value}, but there is no such file here or in {folder}. "
        "Give the path of the weights."
    )


def _in_folder(folder: Path, weights: list[Path]) -> Checkpoint:
    # Or raises, for one that MAX does not read.
    ggufs = [read_checkpoint(path) for path in weights if is_gguf(path)]
    if (folder / "config.json").exists():
        folder = folder.absolute()
        # Only its own weights are prepared with it.
        own = not ggufs and all(
            path.parent.samefile(folder) and path.name.startswith("model")
            for path in weights
        )
        prepare = own and needs_json([path.name for path in folder.iterdir()])
        return Checkpoint(folder, tuple(weights), prepare)
    if len(weights) == len(ggufs) == 1:
        # It has a config and a tokenizer of its own.
        return ggufs[0]
    if (folder / PARAMS).exists():
        found = read_checkpoint(folder)
        if set(found.weights) == set(weights):
            return found
    names = ", ".join(map(str, weights))
    raise UserError(
        f"{folder} has no config.json, which --weight-path {names} needs. Copy the one "
        "that belongs to the weights, or leave --weight-path out."
    )
