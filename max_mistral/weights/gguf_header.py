"""The header of a GGUF file: its metadata, and where each tensor is.

Format: ``ggml/docs/gguf.md`` in llama.cpp, and ``gguf.cpp`` for what it refuses.
Every count and length is held against the size of the file before anything is
made by it, for the file may be damaged or made to harm.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import UserError, shown
from ..fields import is_no_file
from .stored import Stored

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
# By the number of a value's type: how struct and NumPy call it.
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_GGML_TYPES = {int(each) for each in GGML_QUANT_SIZES}
# Of weights that were put in order for one kind of CPU; llama.cpp does so itself now.
_REMOVED = {
    **{31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"},
}
# Far more than any file has. A file may be sparse, so its size alone is no bound.
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS, _MOST_BYTES = 2**16, 2**17, 2**22, 2**28
# Of one tensor; ggml's own limit.
_MOST_RANK = 4
_ALIGNMENT = 32
# Read past rather than read where the vocabulary is not asked for.
_VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    """The outermost dimension first; the file has it the other way round."""
    ggml_type: GGMLQuantizationType
    stored: Stored


@dataclass(frozen=True)
class GGUFHeader:
    """What stands before the data of a GGUF file."""

    metadata: dict[str, Any]
    """Numbers, strings and lists of those, by their keys."""
    tensors: dict[str, GGUFTensor]
    """In the order of the file."""
    beginning: Stored
    """The file's own bytes up to the end of the metadata."""
    alignment: int
    """What the places of tensors are multiples of."""


def read_header(path: Path, *, vocabulary: bool = True) -> GGUFHeader:
    """Reads and checks the header of the file ``path``.

    Args:
        path: The file.
        vocabulary: Whether to read the tokens and merges too.

    Raises:
        UserError: (a ``ValueError``) if it is no complete GGUF file, or has a
            tensor of a type that the ``gguf`` package does not know, or one
            that overlaps another or has no bytes in the file.
        OSError: If the file cannot be read.
    """
    if is_no_file(path):
        raise _incomplete(path, "it is no plain file but a folder, pipe or device")
    with path.open("rb") as file:
        return _Reader(path, file, vocabulary).header()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, vocabulary: bool) -> None:
        self.path, self.file, self.vocabulary = path, file, vocabulary
        self.size = os.fstat(file.fileno()).st_size
        # Counted here: a file asks the system where it is, for each string.
        self.items = self.at = 0

    def header(self) -> GGUFHeader:
        if self.take(4) != _MAGIC:
            self.fail("it does not begin with GGUF")
        version = self.number(4)
        if version not in _VERSIONS:
            self.fail(f"it is of version {version}, and {_VERSIONS} are known")
        tensors = self.count("tensors", 10, _MOST_TENSORS)
        keys = self.count("metadata keys", 10, _MOST_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string()
            if key in metadata:
                self.fail(f"it has the metadata key {shown(key)} twice")
            metadata[key] = self.value(key)
        beginning = Stored(self.path, 0, self.at)
        infos = [self.tensor_info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment not in [2**i for i in range(17)]:
            self.fail(f"its general.alignment is {shown(alignment)}, no power of two")
        start = self.at + -self.at % alignment
        places = self.place(infos, start, alignment)
        return GGUFHeader(metadata, places, beginning, alignment)

    def place(
        self,
        infos: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]],
        start: int,
        alignment: int,
    ) -> dict[str, GGUFTensor]:
        """The tensors, one behind the other with no more between than alignment."""
        tensors: dict[str, GGUFTensor] = {}
        expected = 0
        for name, shape, ggml_type, offset in infos:
            if name in tensors:
                self.fail(f"it has the tensor {shown(name)} twice")
            block, size = GGML_QUANT_SIZES[ggml_type]
            if shape[-1] % block:
                self.fail(
                    f"{shown(name)} is {ggml_type.name} with rows of {shape[-1]}, "
                    f"which come in blocks of {block}"
                )
            size = math.prod(shape) // block * size
            if offset != expected:
                self.fail(
                    f"{shown(name)} is at {offset} of the data, where {expected} is "
                    "the end of the tensor before it"
                )
            if start + offset + size > self.size:
                self.fail(
                    f"{shown(name)} ends at {start + offset + size}, but it has "
                    f"{self.size} bytes"
                )
            stored = Stored(self.path, start + offset, size)
            tensors[name] = GGUFTensor(name, shape, ggml_type, stored)
            expected += size + -size % alignment
        return tensors

    def tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, rank = self.string(), self.number(4)
        if not 1 <= rank <= _MOST_RANK:
            self.fail(f"{shown(name)} has {rank} dimensions, not 1 to {_MOST_RANK}")
        shape = tuple(self.number(8) for _ in range(rank))
        ggml_type, offset = self.number(4), self.number(8)
        if 0 in shape:
            self.fail(f"{shown(name)} has a dimension of 0")
        if ggml_type in _REMOVED:
            raise UserError(
                f"{self.path} has {shown(name)} of the type {_REMOVED[ggml_type]}, "
                "which llama.cpp has removed, and max_mistral does not read. Take a "
                "file in Q4_0 or Q4_K_M."
            )
        if ggml_type not in _GGML_TYPES:
            raise UserError(
                f"{self.path} has {shown(name)} of the type {ggml_type}, which the "
                "gguf package does not know. Fetch the file again, or update gguf."
            )
        return name, shape[::-1], GGMLQuantizationType(ggml_type), offset

    def value(self, key: str) -> Any:
        kind = self.number(4)
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.numbers(kind, 1)[0]
        if kind != _ARRAY:
            self.fail(f"the metadata {shown(key)} is of the unknown type {kind}")
        kind = self.number(4)
        smallest = 8 if kind == _STRING else np.dtype(_NUMBERS.get(kind, "u1")).itemsize
        count = self.count(f"items in {shown(key)}", smallest, _MOST_ITEMS - self.items)
        self.items += count
        if kind in _NUMBERS:
            return self.numbers(kind, count)
        if kind != _STRING:
            self.fail(f"the metadata {shown(key)} is an array of the type {kind}")
        if key in _VOCABULARY and not self.vocabulary:
            for _ in range(count):
                self.take(self.number(8))
            return None
        return [self.string() for _ in range(count)]

    def numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def string(self) -> str:
        try:
            return self.take(self.number(8)).decode()
        except UnicodeDecodeError as error:
            why = f"a string in its header is no UTF-8 ({error})"
            raise _incomplete(self.path, why) from error

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things of which each takes ``smallest`` bytes or more."""
        count = self.number(8)
        if count > min(most, (self.size - self.at) // smallest):
            self.fail(f"it would have {count} {what}, more than it has room for")
        return count

    def number(self, size: int) -> int:
        return struct.unpack("<I" if size == 4 else "<Q", self.take(size))[0]

    def take(self, size: int) -> bytes:
        if size > self.size - self.at or self.at + size > _MOST_BYTES:
            self.fail(f"its header goes on for {size} bytes behind {self.at}")
        self.at += size
        data = self.file.read(size)
        if len(data) != size:
            self.fail("it became shorter while it was read")
        return data

    def fail(self, why: str) -> NoReturn:
        raise _incomplete(self.path, why)


def _incomplete(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a complete GGUF file: {why}. Fetch it again.")
