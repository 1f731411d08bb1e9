"""What is written for each tensor when an adapter is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from transformers import AutoConfig, PretrainedConfig

from ...errors import UserError
from ...hf_config import check_raw
from ...weights.check_names import check_tensors
from ...weights.gguf_encode import dequantize_rows
from ...weights.heads import join_rotary, rotary_heads, split_rotary
from ...weights.names import (
    EMBEDDING,
    HEAD,
    dropped_tensors,
    expected_tensors,
    in_text_tower,
)
from .adapter import Change
from .maths import Values

_TIED = {EMBEDDING.graph, HEAD.graph}


@dataclass(frozen=True)
class Output:
    """A tensor to write: where it comes from, and what is done to it."""

    name: str
    source: Any
    """A SafeTensor or a GGUFTensor."""
    change: Change | None = None
    heads: int | None = None
    """Of a Q or K projection in Mistral's rotary order."""


def read_hf_config(source: Path, config: Mapping[str, Any]) -> PretrainedConfig:
    """Returns what transformers makes of a ``config.json``.

    Raises:
        UserError: (a ``ValueError``) if it makes nothing of it, or the
            checkpoint is quantized, or it is of another model, or a count is
            beyond any model's.
    """
    parts = (config, config.get("text_config") or {})
    keys = ("quantization_config", "hf_quant_config.json")
    of_modelopt = (source / keys[1]).exists()
    if of_modelopt or any(part.get(keys[0]) for part in parts):
        raise UserError(
            f"{source} is quantized ({keys[of_modelopt]}), and an adapter cannot be "
            "merged into it. Give the model's bfloat16 checkpoint, or a GGUF file."
        )
    check_raw(f"config.json of {source}", config)
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:  # transformers has no narrower one
        raise UserError(
            f"transformers cannot read the config.json of {source} ({error}). Copy "
            "the file that belongs to the checkpoint."
        ) from error


def untie(config: dict[str, Any], changes: Mapping[str, Change]) -> None:
    """Sets ``tie_word_embeddings`` to false where the adapter changes one of the two.

    The other stays as it was when the adapter was trained.
    """
    if changes.keys() & _TIED:
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False


def plan(
    tensors: Mapping[str, Any],
    config: PretrainedConfig,
    changes: Mapping[str, Change],
    scheme: str,
    tower: str,
    source: str,
) -> list[Output]:
    """What to write for each tensor of the text model, which must be all there."""
    head = in_text_tower(getattr(HEAD, scheme), tower)
    tied = head not in tensors and (scheme == "gguf" or config.tie_word_embeddings)
    expected = expected_tensors(config, scheme, tied=tied, tower=tower)
    dropped = dropped_tensors(config, scheme, tied=tied, tower=tower)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_tensors(shapes, expected, dropped, source)
    outputs = []
    for name, tensor in tensors.items():
        if name not in expected:
            outputs.append(Output(name, tensor))
            continue
        graph = expected[name].graph
        heads = rotary_heads(graph, config) if scheme in ("native", "gguf") else None
        outputs.append(Output(name, tensor, changes.get(graph), heads))
    if tied and changes.keys() & _TIED:
        embedding = tensors[in_text_tower(getattr(EMBEDDING, scheme), tower)]
        outputs.append(Output(head, embedding, changes.get(HEAD.graph)))
    return outputs


def merged(
    output: Output, change: Change, ggml_type: GGMLQuantizationType, where: str
) -> tuple[Values, Values]:
    """Returns a tensor's values without and with the change, in the file's order.

    Raises:
        UserError: (a ``ValueError``) if they are not finite.
    """
    source = output.source
    what = f"{where}: {output.name}"
    old = dequantize_rows(source.stored.read(), ggml_type, source.shape, what)
    values = old if output.heads is None else split_rotary(old, output.heads)
    values = change.apply(values)
    if not np.isfinite(values).all():
        raise UserError(
            f"{output.name} of {where} with the adapter merged has values that are "
            "not finite: the adapter is damaged, or of another model. Fetch it again, "
            "give the base that it was trained on, or a smaller --lora-scale."
        )
    if output.heads is not None:
        values = join_rotary(values, output.heads)
    return old, np.ascontiguousarray(values)


def encode(
    values: Values, ggml_type: GGMLQuantizationType, name: str
) -> tuple[npt.NDArray[np.uint8], Values]:
    """Returns the values' bytes in a GGML type, uint8, and the values of these.

    Args:
        values: float32, of any shape.
        ggml_type: One that the ``gguf`` package can write.
        name: The tensor's, for the message.

    Raises:
        UserError: (a ``ValueError``) if one is beyond what the type can hold.
    """
    with np.errstate(over="ignore"):
        data = (
            np.ascontiguousarray(quantize(values, ggml_type)).view(np.uint8).reshape(-1)
        )
    worth = dequantize_rows(data, ggml_type, values.shape)
    if not np.isfinite(worth).all():
        raise UserError(
            f"{name} with the adapter merged is beyond what {ggml_type.name} can hold. "
            "Give a base in bfloat16 or float32."
        )
    return data, worth
