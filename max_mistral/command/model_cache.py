"""Where prepared folders are kept: ``models`` in the user's cache.

A folder is kept by what it is made of, so a changed file or other code of this
package makes a new one. What was not used for a month goes.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from ..own_folders import (
    MODELS,
    UNUSED,
    cache_roots,
    hash_of_code,
    is_ours,
    is_unused,
    locked,
    make_ours,
    note_use,
    remove,
)
from ..prepare import prepare
from ..prepare.atomic import PARTIAL

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_SOURCES = Path(__file__).parents[1]
# Of this package, what prepare is made of.
_CODE = ("", "prepare", "prepare/lora", "weights")
# What else decides what it writes.
_LIBRARIES = ("gguf", "mistral-common", "tokenizers", "transformers")


def prepared(source: Path, say: Callable[[str], None]) -> Path:
    """Returns the folder that ``prepare`` makes of ``source``, once.

    Args:
        source: A GGUF file or a folder, as :func:`max_mistral.prepare.prepare`
            takes it.
        say: Is told what is made, if anything.

    Raises:
        UserError: (a ``ValueError``) if ``source`` cannot be prepared, or there
            is no place to keep it.
        OSError: If ``source`` cannot be read.
    """
    name = _fingerprint(source)
    for root in cache_roots():
        folder = root / MODELS / name
        with ExitStack() as lock:
            try:
                root.parent.mkdir(parents=True, exist_ok=True)
                for each in (root, root / MODELS):
                    make_ours(each)
                lock.enter_context(locked(root / MODELS))
                usable = _is_usable(folder)
                if usable:
                    note_use(folder)
                elif os.path.lexists(folder):
                    shutil.rmtree(folder)
                _sweep(root / MODELS)
            except OSError as error:
                print(f"Nothing can be kept in {root}: {error}", file=sys.stderr)
                continue
            if usable:
                return folder
            say(f"Preparing {source} in {folder}")
            try:
                with _closed_to_others():
                    prepare(source, folder)
                return folder
            except OSError as error:
                # Others are about the source, and another folder is no help.
                if error.errno not in _FULL:
                    raise
                print(f"Nothing can be kept in {root}: {error}", file=sys.stderr)
    raise UserError(
        "There is no folder to prepare the model in. Set XDG_CACHE_HOME to one that "
        "you can write to, or use max-mistral prepare."
    )


def _is_usable(folder: Path) -> bool:
    """Whether no other user can have written there. Links are to the source."""
    return is_ours(folder) and all(
        path.is_symlink() or is_ours(path) for path in folder.iterdir()
    )


def _sweep(models: Path) -> None:
    """Removes what was not used for a month, and what a killed process left.

    Whoever prepares here has the lock.
    """
    for path in models.iterdir():
        with suppress(OSError):
            if path.is_dir() and is_unused(path, UNUSED):
                # Half a folder must not be taken for a whole one.
                path.rename(models / f"{PARTIAL}{path.name}")
    remove(models.glob(f"{PARTIAL}*"))


@contextmanager
def _closed_to_others() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _fingerprint(source: Path) -> str:
    # A link's own name counts, and the size and times of what it points to.
    files = [source]
    if not source.is_file():
        # Of the folders within, prepare copies no other file.
        files = sorted([*source.iterdir(), *source.glob("*_Pooling/config.json")])
    digest = hashlib.sha256(_code(_SOURCES).encode())
    for path in files:
        if path.is_file():
            found = path.stat()
            times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
            line = f"\n{path.absolute()}\n{found.st_size} {times}"
            digest.update(os.fsencode(line))
    # For people who look into the cache; 100 bytes are far below a name's limit.
    label = os.fsencode(source.stem)[:100].decode(errors="ignore")
    return f"{digest.hexdigest()[:16]}-{label}"


@functools.cache
def _code(sources: Path) -> str:
    """Returns a hash of the code that says what a prepared folder holds."""
    return hash_of_code(sources, _CODE, _LIBRARIES)
