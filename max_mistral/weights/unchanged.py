"""Whether a checkpoint's files are still those that were looked at first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from max.pipelines.lib import MAXModelConfig

from ..errors import UserError

State = tuple[tuple[int, int, int, int], ...]


def state_of(paths: Sequence[Path]) -> State:
    """Returns what changes when a file is written to or another takes its place.

    A size and a time of modification are not enough: some tools set the latter.
    Of a file that is not there it is zeros.
    """
    found = []
    for path in paths:
        try:
            file = path.stat()
        except OSError:
            found.append((0, 0, 0, 0))
            continue
        made = file.st_size, file.st_ino, file.st_mtime_ns
        found.append((*made, file.st_ctime_ns))
    return tuple(found)


def check_unchanged(paths: Sequence[Path], state: State) -> None:
    """Raises a ``UserError`` if a file of a checkpoint is no longer what it was.

    Args:
        paths: Its files.
        state: What :func:`state_of` returned before any of them was read.
    """
    # Not by the last number: it changes with a file's mode, and its links. Nor by the
    # second: some file systems over a network give a file another one now and then.
    if [file[:3:2] for file in state_of(paths)] == [file[:3:2] for file in state]:
        return
    names = ", ".join(map(str, paths))
    raise UserError(
        f"{names} changed while the weights were loaded. Start again when the files "
        "are whole."
    )


@contextmanager
def unchanged(model: MAXModelConfig) -> Iterator[None]:
    """Raises a ``UserError`` at its end if a file of a checkpoint has changed."""
    # With --force-download each look for the paths fetches them anew.
    paths = [] if model.force_download else model.resolved_weight_paths()
    state = state_of(paths)
    yield
    check_unchanged(paths, state)
