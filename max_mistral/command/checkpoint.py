"""MODEL, where it lies on the disk: which files it is made of, and of what kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UserError
from ..prepare.native import PARAMS

# As llama.cpp's llama-gguf-split names the parts. One alone is whole.
_PART = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.gguf$", re.IGNORECASE)
# A vision tower is no model by itself, nor is what a quantizer weighs by; what it
# weighed may have that in the middle of its name.
_OTHERS = re.compile(r"mmproj|^imatrix|imatrix$", re.IGNORECASE)
# As many files as a message names.
_MOST_NAMED = 30


@dataclass(frozen=True)
class Checkpoint:
    """A model on the disk."""

    path: Path
    """The GGUF file, or the folder."""
    weights: tuple[Path, ...]
    """The files with the weights, by absolute paths."""
    prepare: bool
    """Whether MAX loads it only as ``prepare`` makes it."""

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are a GGUF file."""
        return any(is_gguf(path) for path in self.weights)


def is_gguf(path: PurePath) -> bool:
    """Whether a file is GGUF, by its name."""
    return path.suffix.lower() == ".gguf"


def read_checkpoint(path: Path) -> Checkpoint:
    """Finds the weights in a file or folder that exists.

    Raises:
        UserError: (a ``ValueError``) if there are none, or it is not clear
            which are meant.
    """
    # Not resolved: the Hub's cache links to files without a suffix.
    path = path.absolute()
    if not path.is_dir():
        return _gguf_file(path)
    found = sorted(entry for entry in path.iterdir() if not entry.is_dir())
    names = [entry.name for entry in found]
    if weights := pick_safetensors(names):
        native = all(name.startswith("consolidated") for name in weights)
        if not native and "config.json" not in names:
            raise UserError(
                f"{path} has no config.json. Copy the one that belongs to the "
                "checkpoint."
            )
        paths = tuple(path / name for name in weights)
        whole = all(name.startswith("model") for name in weights)
        return Checkpoint(path, paths, prepare=native or (whole and needs_json(names)))
    if any(is_gguf(entry) for entry in found):
        return _gguf_file(path / pick_gguf(names, str(path)))
    has, mend = "", "Give a folder with such weights, or a GGUF file."
    if instead := _instead(names):
        has = f"; it has {_listed(instead)}"
    if instead == ["config.json"]:
        mend = (
            "If prepare made it from a GGUF file, give that file as MODEL, or add "
            "--weight-path FILE.gguf."
        )
    raise UserError(f"{path} has no weights (*.safetensors or one .gguf){has}. {mend}")


def _gguf_file(path: Path) -> Checkpoint:
    if not is_gguf(path):
        raise UserError(
            f"{path} is no GGUF file: its name does not end in .gguf. Give a GGUF "
            "file, a model's folder or a Hub id."
        )
    _refuse_unread(path.name)
    return Checkpoint(path, (path,), prepare=True)


def needs_json(names: Sequence[str]) -> bool:
    """Whether a folder's tokenizer is in Mistral's own format only."""
    if "tekken.json" in names or "tokenizer.json" in names:
        return "tokenizer.json" not in names
    # prepare does not add tokens to a tokenizer.model; transformers may.
    return "added_tokens.json" not in names and any(
        name.startswith("tokenizer.model") for name in names
    )


def pick_safetensors(names: Sequence[str]) -> list[str]:
    """Returns the weights among a folder's files: Hugging Face's, or Mistral's.

    Many repositories have both, with the same weights.
    """
    found = [name for name in names if name.endswith(".safetensors")]
    # An adapter is no model.
    found = [name for name in found if not name.startswith("adapter_")]
    return [n for n in found if not n.startswith("consolidated")] or found


def models_of(names: Sequence[str]) -> list[str]:
    """Returns the GGUF files among a folder's that are models."""
    found = [PurePath(name) for name in names if is_gguf(PurePath(name))]
    return [str(path) for path in found if not _OTHERS.search(path.stem)]


def pick_gguf(
    names: Sequence[str],
    source: str,
    tag: str | None = None,
    *,
    repo: str | None = None,
    assumed: bool = False,
) -> str:
    """Returns the one model among a folder's GGUF files.

    Args:
        names: Of all files.
        source: What to call the folder.
        tag: An encoding such as ``Q4_K_M``, which the name ends with.
        repo: The Hub id, if it is one's folder.
        assumed: Whether ``tag`` is what is taken where the user gives none.

    Raises:
        UserError: (a ``ValueError``) if there is none or more than one, or MAX
            does not read it.
    """
    found = ggufs = models_of(names)
    if tag is not None:
        # A part's number stands between the encoding and the suffix.
        ending = re.compile(
            rf"(^|[-_.]){re.escape(tag)}(-\d{{5}}-of-\d{{5}})?\.gguf$", re.IGNORECASE
        )
        found = [n for n in ggufs if ending.search(PurePath(n).name)]
    if len(found) == 1 or (found and all(_PART.search(n) for n in found)):
        _refuse_unread(found[0])
        return found[0]
    what = "" if tag is None else f" whose name ends in {tag}"
    if assumed:
        what += ", which is taken where none is asked for"
    if not ggufs:
        raise UserError(
            f"{source} has no GGUF file of a model{what}. Give another, with "
            "*.safetensors or a GGUF file of a model."
        )
    if repo is None:
        mend = "Give the path of one."
    else:
        # The whole name ends in itself, and so is always enough.
        mend = f"Give one: {repo}:{PurePath((found or ggufs)[0]).stem}"
    if not found:
        raise UserError(
            f"{source} has no GGUF file of a model{what}; it has {_listed(ggufs)}. "
            f"{mend}"
        )
    raise UserError(
        f"{source} has {len(found)} GGUF files{what}: {_listed(found)}. {mend}"
    )


def _refuse_unread(name: str) -> None:
    """Raises a ``UserError`` about a GGUF file that MAX does not read."""
    path = PurePath(name)
    if path.suffix != ".gguf":
        raise UserError(
            f"{name} ends in {path.suffix}, and MAX knows a GGUF file by .gguf in "
            f"small letters. Rename it to {path.with_suffix('.gguf')}."
        )
    if _PART.search(name):
        raise UserError(
            f"{name} is one part of a split GGUF file, and MAX reads whole ones. Merge "
            "the parts with llama.cpp's llama-gguf-split --merge, or take a smaller "
            "encoding."
        )


def _instead(names: Sequence[str]) -> list[str]:
    """What is there that people take for a model."""
    found = [n for n in names if n.endswith((".bin", ".pth", ".pt", ".ckpt"))]
    found += [n for n in names if n.startswith("adapter_")]
    return found + [n for n in names if n in (PARAMS, "config.json")]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    listed = ", ".join(names[:_MOST_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed
