"""A GGUF file with an adapter merged, tensor by tensor."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import PretrainedConfig

from ...progress import progress
from ...weights.gguf_file import GGUFCheckpoint
from .adapter import Change
from .maths import Values
from .plan import Output, encode, merged, plan

# What ``gguf.quants`` can write; the others become Q8_0.
_WRITABLE = {
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
}


def merge_gguf(
    checkpoint: GGUFCheckpoint,
    config: PretrainedConfig,
    changes: Mapping[str, Change],
    path: Path,
) -> list[str]:
    """Writes a GGUF file with an adapter merged, in the base's own encodings.

    Q8_0 stands in for those that cannot be written (K-quants, IQ).

    Args:
        checkpoint: The base.
        config: The base's HF config.
        changes: By the tensors' names in the graph.
        path: The file to write.

    Returns:
        A line for each class of tensors and encoding: what the adapter changed,
        and what rounding did.

    Raises:
        UserError: (a ``ValueError``) naming what does not fit the config.
        OSError: If a file cannot be read or written.
    """
    source = str(checkpoint.path)
    outputs = plan(checkpoint.tensors, config, changes, "gguf", "", source)
    ggml_types = [_writable(output) for output in outputs]
    losses: dict[tuple[str, str, str], _Loss] = {}
    with path.open("wb") as file:
        _write_gguf_header(file, checkpoint, outputs, ggml_types)
        both = list(zip(outputs, ggml_types, strict=True))
        for output, ggml_type in progress(both, "Merging", "tensors"):
            _pad(file, checkpoint.header.alignment)
            if output.change is None:
                output.source.stored.read().tofile(file)
                continue
            old, new = merged(output, output.change, output.source.ggml_type, source)
            data, worth = encode(new, ggml_type, output.name)
            data.tofile(file)
            key = (_class(output.name), output.source.ggml_type.name, ggml_type.name)
            losses.setdefault(key, _Loss()).add(old, new, worth)
        # As every other tensor, the last is followed by padding.
        _pad(file, checkpoint.header.alignment)
    return [loss.line(*key) for key, loss in losses.items()]


@dataclass
class _Loss:
    """What merging and rounding did to tensors of a class: sums of squares."""

    tensors: int = 0
    size: float = 0.0
    changed: float = 0.0
    rounded: float = 0.0

    def add(self, old: Values, new: Values, worth: Values) -> None:
        self.tensors += 1
        self.size += _squares(new)
        self.changed += _squares(new - old)
        self.rounded += _squares(worth - new)

    def line(self, name: str, old: str, new: str) -> str:
        changed, rounded = (
            math.sqrt(squares / self.size) if self.size else 0.0
            for squares in (self.changed, self.rounded)
        )
        lost = ", in which much of the change is lost" if rounded > changed / 2 else ""
        return (
            f"{name}: {self.tensors} from {old} into {new}; the adapter changes them "
            f"by {changed:.2%}, rounding by {rounded:.2%} (RMS){lost}"
        )


def _squares(values: Values) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _writable(output: Output) -> GGMLQuantizationType:
    """The encoding to write a tensor in."""
    ggml_type = output.source.ggml_type
    if output.change is None or ggml_type in _WRITABLE:
        return ggml_type
    # Rows of the others are whole blocks of 32 or 256; Q8_0's are of 32.
    return GGMLQuantizationType.Q8_0


def _class(name: str) -> str:
    """``blk.7.attn_q.weight`` -> ``attn_q``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _write_gguf_header(
    file: BinaryIO,
    checkpoint: GGUFCheckpoint,
    outputs: Sequence[Output],
    ggml_types: Sequence[GGMLQuantizationType],
) -> None:
    """The base's own metadata, then what each tensor is and where."""
    beginning = checkpoint.header.beginning.read().tobytes()
    # Magic and version, how many tensors, how many keys, the keys.
    file.write(beginning[:8] + struct.pack("<Q", len(outputs)) + beginning[16:])
    offset = 0
    for output, ggml_type in zip(outputs, ggml_types, strict=True):
        name, shape = output.name.encode(), output.source.shape
        file.write(struct.pack("<Q", len(name)) + name)
        file.write(struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
        file.write(struct.pack("<IQ", ggml_type, offset))
        block, size = GGML_QUANT_SIZES[ggml_type]
        offset += math.prod(shape) // block * size
        offset += -offset % checkpoint.header.alignment


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
