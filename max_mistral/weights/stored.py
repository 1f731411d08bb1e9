"""Where a tensor's bytes are in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are."""

    path: Path
    offset: int
    size: int

    def read(self) -> npt.NDArray[np.uint8]:
        """Returns the bytes, in memory of their own."""
        return np.fromfile(self.path, np.uint8, self.size, offset=self.offset)
