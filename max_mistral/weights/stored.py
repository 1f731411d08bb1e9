"""Where a tensor's bytes are in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are."""

    path: Path
    offset: int
    size: int

    def read(self, start: int = 0, size: int | None = None) -> npt.NDArray[np.uint8]:
        """Returns the bytes or some of them, in memory of their own.

        Args:
            start: The first byte, counted from :attr:`offset`.
            size: How many; by default up to the end.

        Raises:
            UserError: (a ``ValueError``) if the file ends before they do: it
                became shorter since its header was read.
        """
        size = self.size - start if size is None else size
        assert 0 <= start <= start + size <= self.size
        data = np.fromfile(self.path, np.uint8, size, offset=self.offset + start)
        if data.size != size:
            raise UserError(
                f"{self.path} became shorter while it was read: it has {data.size} of "
                f"the {size} bytes at {self.offset + start}. Fetch it again."
            )
        return data
