"""The files of a checkpoint, in a folder or in a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import cached_file


def find_file(
    model_path: str, name: str, revision: str | None, *, must_know: bool = False
) -> Path | None:
    """Returns a checkpoint's file, fetched where need be; ``None`` if it has none.

    Args:
        model_path: A folder or the name of a repository.
        name: The file's name.
        revision: The repository's revision.
        must_know: Whether it is an error that the Hub cannot be asked; otherwise a
            repository has no files then but those that were fetched before.

    Raises:
        OSError, HTTPError: If ``must_know`` and the Hub cannot be asked.
    """
    if must_know and not Path(model_path).is_dir():
        return _ask_for(model_path, name, revision)
    found = cached_file(
        model_path,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _ask_for(repo: str, name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except LocalEntryNotFoundError:
        # That it has none may be known from before.
        if try_to_load_from_cache(repo, name, revision=revision) is None:
            raise
        return None
    except EntryNotFoundError:
        return None
