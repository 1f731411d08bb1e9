"""A GGUF file's metadata, and its tensors as weights.

Format: ``ggml/docs/gguf.md`` in llama.cpp; the ``gguf`` package reads it and
dequantizes every type with NumPy.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from max.graph.weights import WeightData
from max.graph.weights._gguf_reader import TokenSkippingGGUFReader
from tqdm import tqdm
from transformers import PretrainedConfig

from ..errors import UserError
from ..kernels.packing import BLOCKS, Encoding
from .heads import rotary_heads, split_rotary
from .names import HEAD, check_tensors, dropped_tensors, expected_tensors
from .packed import pack_matrix
from .stored import Stored

logger = logging.getLogger("max.pipelines")

# GGUF architectures that compute what Mistral computes.
ARCHITECTURES = ("llama", "mistral3")


class GGUFCheckpoint:
    """One open GGUF file.

    Args:
        path: The file.
        vocabulary: Whether to read the tokens too, which takes seconds.

    Raises:
        UserError: (a ``ValueError``) if it is no complete GGUF file, or one of
            an architecture that is not Mistral's.
    """

    def __init__(self, path: Path, *, vocabulary: bool = True) -> None:
        self.path = path
        reader = GGUFReader if vocabulary else TokenSkippingGGUFReader
        try:
            self._reader = reader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"{path} is not a complete GGUF file, or has what the gguf package "
                f"does not know ({error}). Fetch it again, or update gguf."
            ) from error
        self.architecture: str = self.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{path} holds the architecture {self.architecture!r}; max_mistral "
                f"reads {' and '.join(map(repr, ARCHITECTURES))}."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a metadata value; ``default`` where the file has none."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """Returns a metadata value; raises a ``UserError`` where there is none."""
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path} has no metadata {key!r}.")
        return value

    @property
    def tensor_names(self) -> set[str]:
        """The names of the file's tensors."""
        return {tensor.name for tensor in self._reader.tensors}

    def weights(
        self, config: PretrainedConfig, *, packed: bool
    ) -> Iterator[tuple[str, WeightData]]:
        """Yields each tensor under its name in the graph.

        Matrices are packed as they are encoded, or else everything is float32.

        Args:
            config: The HF config that the tensors must fit.
            packed: Whether to pack the matrices.

        Raises:
            UserError: (a ``ValueError``) if the tensors do not fit the config,
                or naming one whose type the ``gguf`` package cannot read.
        """
        tied = HEAD.gguf not in self.tensor_names
        expected = expected_tensors(config, "gguf", tied=tied)
        check_tensors(
            # GGUF gives the innermost dimension first.
            {
                tensor.name: tuple(int(d) for d in reversed(tensor.shape))
                for tensor in self._reader.tensors
            },
            expected,
            dropped_tensors(config, "gguf", tied=tied),
            str(self.path),
        )
        repacked: Counter[str] = Counter()
        for tensor in tqdm(
            [t for t in self._reader.tensors if t.name in expected],
            desc="Loading weights",
            unit=" tensors",
            disable=None,  # no bar where no one sees it move
        ):
            graph, shape = expected[tensor.name].graph, expected[tensor.name].shape
            heads = rotary_heads(graph, config)
            # Read apart from the reader's map of the file, whose pages would stay.
            stored = Stored(self.path, int(tensor.data_offset), int(tensor.n_bytes))
            data, kind = stored.read(), GGMLQuantizationType(tensor.tensor_type)
            if packed and len(shape) == 2:
                data, encoding = encode(data, kind, shape)
                if encoding.name != kind.name:
                    repacked[f"{kind.name} as {encoding.name}"] += 1
                yield graph, pack_matrix(graph, data, shape, encoding, heads)
                continue
            values = dequantize_rows(data, kind, shape)
            if heads is not None:
                values = split_rotary(values, heads)
            yield graph, WeightData.from_numpy(np.ascontiguousarray(values), graph)
        for change, count in repacked.items():
            logger.info("%d tensors of %s are kept as %s", count, self.path, change)


def encode(
    data: npt.NDArray[np.uint8], kind: GGMLQuantizationType, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], Encoding]:
    """Returns a matrix's bytes in an encoding that has a kernel.

    Types without one become the next that loses nothing: Q5_0 is exact in
    Q8_0; the others have blocks or tables of their own and become float16,
    whose rounding (2^-11) is far below their own.
    """
    if kind.name in Encoding.__members__:
        return data, Encoding[kind.name]
    if kind == GGMLQuantizationType.Q5_0:
        return _q5_0_as_q8_0(data), Encoding.Q8_0
    values = dequantize_rows(data, kind, shape)
    return values.astype(np.float16).view(np.uint8), Encoding.F16


def dequantize_rows(
    data: npt.NDArray[np.uint8], kind: GGMLQuantizationType, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Returns a tensor's bytes as float32 of ``shape``."""
    try:
        return dequantize(data.reshape(*shape[:-1], -1), kind).reshape(shape)
    except NotImplementedError as error:
        raise UserError(
            f"A tensor is of the GGML type {kind.name}, which cannot be read."
        ) from error


def _q5_0_as_q8_0(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    # A block: float16 d, 32 fifth bits, 16 bytes with column k low, k + 16 high.
    blocks = data.reshape(-1, 22)
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    low, high = blocks[:, 6:] & 15, blocks[:, 6:] >> 4
    codes = np.concatenate([low, high], axis=1) | fifth << 4
    wide = np.empty((len(blocks), BLOCKS[Encoding.Q8_0][1]), np.uint8)
    wide[:, :2] = blocks[:, :2]
    wide[:, 2:] = codes - 16  # modulo 256 is the int8 of code - 16
    return wide.reshape(-1)
