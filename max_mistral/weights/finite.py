"""NaN and infinity in weights and scales: a damaged file, found at load.

One such number makes every answer rubbish, or only those that touch it. To look
takes 0.15 s a gigabyte, 1 to 7 % of what it takes to read and pack the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.driver import is_virtual_device_mode
from max.dtype import DType
from max.graph.weights import WeightData

from ..errors import UserError
from ..kernels.packing import Encoding

# Bytes that are looked at in one go: they stay in the cache for the second pass.
_STEP = 2**18


@dataclass(frozen=True)
class _Format:
    """A float format whose bit patterns above ``largest`` are infinity or NaN.

    True of every format here: without its sign a number's bits grow with it,
    and infinity and NaN are beyond the largest.
    """

    word: type[np.unsignedinteger]
    magnitude: int
    """The bits but for the sign's."""
    largest: int
    """Of the finite ones, as bits."""


_F16 = _Format(np.uint16, 0x7FFF, 0x7BFF)
_DTYPES = {
    DType.float32: _Format(np.uint32, 0x7FFFFFFF, 0x7F7FFFFF),
    DType.bfloat16: _Format(np.uint16, 0x7FFF, 0x7F7F),
    DType.float16: _F16,
    # Has no infinity.
    DType.float8_e4m3fn: _Format(np.uint8, 0x7F, 0x7E),
}
_DENSE = {
    Encoding.F32: DType.float32,
    Encoding.BF16: DType.bfloat16,
    Encoding.F16: DType.float16,
}


def check_weight(weight: WeightData, source: str) -> None:
    """Raises if a tensor holds NaN or infinity; integers hold none.

    Args:
        weight: As it is in the checkpoint.
        source: What to call the checkpoint in the message.

    Raises:
        UserError: (a ``ValueError``) naming the tensor and the first place.
    """
    # max warm-cache may have zeros for a checkpoint that is not there.
    if weight.dtype not in _DTYPES or is_virtual_device_mode():
        return
    known = _DTYPES[weight.dtype]
    buffer = weight.to_buffer()
    size = buffer.num_elements * buffer.dtype.size_in_bytes
    words = buffer.view(DType.uint8, (size,)).to_numpy().view(known.word)
    shape = [int(dim) for dim in weight.shape]
    _check(words, known, weight.name, source, lambda at: _place(at, shape))


def check_bytes(
    name: str,
    data: npt.NDArray[np.uint8],
    encoding: Encoding,
    columns: int,
    source: str,
    first_row: int = 0,
) -> None:
    """Raises if a matrix, or a scale of its blocks, is NaN or infinite.

    Args:
        name: The tensor's in the checkpoint.
        data: Its bytes, row by row, in memory of their own.
        encoding: What the bytes are.
        columns: Weights in a row.
        source: What to call the checkpoint in the message.
        first_row: Which row of the matrix the bytes begin with.

    Raises:
        UserError: (a ``ValueError``) naming the tensor and the first place.
    """
    before = first_row * columns
    if encoding in _DENSE:
        known = _DTYPES[_DENSE[encoding]]
        words = data.reshape(-1).view(known.word)
        _check(
            words, known, name, source, lambda at: _place(before + at, [-1, columns])
        )
        return
    width = encoding.block_columns
    blocks = data.reshape(-1, encoding.block_bytes)
    for offset in encoding.scales_at:
        scales = np.ascontiguousarray(blocks[:, offset : offset + 2])
        _check(
            scales.reshape(-1).view(_F16.word),
            _F16,
            name,
            source,
            lambda at: f"the scales of {_place(before + at * width, [-1, columns])}",
        )


def _check(
    words: npt.NDArray[np.unsignedinteger],
    known: _Format,
    name: str,
    source: str,
    place: Callable[[int], str],
) -> None:
    step = _STEP // words.itemsize
    room = np.empty(step, known.word)
    sign = known.word(known.magnitude)
    for start in range(0, words.size, step):
        part = words[start : start + step]
        bits = np.bitwise_and(part, sign, out=room[: part.size])
        if bits.max() > known.largest:
            at = start + int((bits > known.largest).argmax())
            raise UserError(
                f"{name} of {source} has a number that is NaN or infinite, at "
                f"{place(at)}. The file is damaged: fetch it again."
            )


def _place(at: int, shape: Sequence[int]) -> str:
    if len(shape) != 2:
        return f"place {at}"
    row, column = divmod(at, shape[1])
    return f"row {row}, column {column}"
