"""A model on the Hugging Face Hub, brought to this machine.

``huggingface_hub`` keeps it in its own cache and shows its own progress.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from httpx import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import UserError, shown
from ..mistral_common_chat import MISTRAL_TOKENIZERS
from .checkpoint import is_gguf, models_of, pick_gguf, pick_safetensors

# What llama.cpp takes where a repository has several and none is asked for.
_USUAL = "Q4_K_M"
_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<tag>[\w.-]+))?", re.ASCII)
# Of the cache on this machine, not of the Hub. hf_xet tells it by words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEEPING = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
_WEIGHTS = (".safetensors", ".gguf")
# Beside the weights: configs, tokenizers and templates. Of the folders within only
# what says how sentence-transformers pools; modules.json names it.
_BESIDE = re.compile(
    r"[^/]+\.(json|jinja)|tokenizer\.model[^/]*|[^/]+_Pooling/config\.json"
)


def fetch(
    model: str,
    revision: str | None = None,
    check: Callable[[Path], None] = lambda folder: None,
    *,
    force: bool = False,
) -> Path:
    """Returns the folder, or the GGUF file, of a Hub id.

    Args:
        model: ``user/repo``, or of GGUF files ``user/repo:Q4_K_M``.
        revision: A branch, tag or commit.
        check: Is given the folder with all but the weights, or a GGUF file's
            name, before those are fetched; raises if they are not worth it.
        force: Whether to fetch anew what is in the Hub's cache too.

    Raises:
        UserError: (a ``ValueError``) if it is no Hub id, there is no such
            model or encoding, or it cannot be fetched.
    """
    match = _ID.fullmatch(model)
    if match is None:
        raise UserError(
            f"{model} does not exist. Give a GGUF file, a model's folder, or a Hub "
            "id such as mistralai/Mistral-7B-Instruct-v0.3."
        )
    repo, tag = match["repo"], match["tag"]
    try:
        folder, wanted = _fetch(repo, tag, revision, check, force)
    except UserError:  # a ValueError too
        raise
    except GatedRepoError as error:
        raise UserError(
            f"{repo} is gated. Accept its terms at https://huggingface.co/{repo} and "
            "log in with: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{model} is no file or folder here, and the Hugging Face Hub shows no "
            f"model {repo}. Check the spelling; if it is private, log in with: "
            "hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{repo} has no revision {shown(revision)}. Check "
            "--huggingface-model-revision."
        ) from error
    except (OSError, HTTPError, ImportError, ValueError, RuntimeError) as error:
        # The last is hf_xet's, the two before are of a proxy that httpx cannot use.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        is_full = any(os.strerror(number) in reason for number in _FULL)
        if is_full or getattr(error, "errno", None) in _KEEPING:
            raise UserError(
                f"{model} cannot be kept in the Hub's cache ({reason}). Make room, or "
                "set HF_HOME to a folder that you can write to."
            ) from error
        cached = "" if force else ", nor in the Hub's cache"
        raise UserError(
            f"{model} is no file or folder here{cached}, and the Hugging Face Hub "
            f"cannot be read ({reason}). Check the spelling, the network and its proxy "
            "(ALL_PROXY, HTTPS_PROXY)."
        ) from error
    return folder / wanted[0] if is_gguf(Path(wanted[0])) else folder


def _fetch(
    repo: str,
    tag: str | None,
    revision: str | None,
    check: Callable[[Path], None],
    force: bool,
) -> tuple[Path, list[str]]:
    """Returns the folder, and the names of what was asked for in it."""
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except (OSError, HTTPError, ImportError, ValueError) as error:
        if force:
            raise
        return _find_fetched(repo, tag, revision, error)
    wanted = _wanted(names, repo, tag)
    small = [name for name in wanted if not name.endswith(_WEIGHTS)]
    if small:
        check(_download(repo, revision, small, force))
    elif is_gguf(Path(wanted[0])):
        check(Path(wanted[0]))
    return _download(repo, revision, wanted, force), wanted


def _download(repo: str, revision: str | None, names: list[str], force: bool) -> Path:
    patterns = [glob.escape(name) for name in names]
    return Path(
        snapshot_download(
            repo, revision=revision, allow_patterns=patterns, force_download=force
        )
    )


def _find_fetched(
    repo: str, tag: str | None, revision: str | None, cause: Exception
) -> tuple[Path, list[str]]:
    """What an earlier call fetched, where the Hub cannot be reached."""
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
    except OSError as error:
        # Newer versions know what the repository has, of which all is seldom fetched.
        found = getattr(error, "snapshot_path", None)
        if found is None:
            raise cause from None
        folder = Path(found)
        listed = huggingface_hub.get_cached_repo_tree(repo, revision=revision)
        names = [file.path for file in listed]
    wanted = _wanted(names, repo, tag, f"{repo}, as fetched before,")
    if not all((folder / name).is_file() for name in wanted):
        raise cause
    return folder, wanted


def _wanted(
    names: list[str], repo: str, tag: str | None, source: str | None = None
) -> list[str]:
    """The files to fetch; of GGUF files one."""
    weights = pick_safetensors([name for name in names if "/" not in name])
    if weights and tag is None:
        beside = [
            name
            for name in names
            if _BESIDE.fullmatch(name) or name in MISTRAL_TOKENIZERS
        ]
        return weights + beside
    assumed = tag is None and len(models_of(names)) > 1
    tag = _USUAL if assumed else tag
    return [pick_gguf(names, source or repo, tag, repo=repo, assumed=assumed)]
