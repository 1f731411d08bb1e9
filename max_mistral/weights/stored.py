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

    def read(self) -> npt.NDArray[np.uint8]:
        """Returns the bytes, in memory of their own.

        Raises:
            UserError: (a ``ValueError``) if the file ends before they do: it
                became shorter since its header was read.
        """
        data = np.fromfile(self.path, np.uint8, self.size, offset=self.offset)
        if data.size != self.size:
            raise UserError(
                f"{self.path} became shorter while it was read: it has {data.size} of "
                f"the {self.size} bytes at {self.offset}. Fetch it again."
            )
        return data
