"""The tensors of a quantized checkpoint, in any weight format."""

from __future__ import annotations

from collections.abc import Mapping

from max.graph.weights import WeightData

from ..errors import UserError
from ..weights.dtypes import SCALED
from ..weights.names import ExpectedTensor
from .base import Expected, WeightFormat, is_projection


def quantized_tensors(
    expected: Mapping[str, ExpectedTensor],
    found: Mapping[str, WeightData],
    weight_format: WeightFormat,
) -> tuple[Expected, dict[str, str]]:
    """Returns what a quantized checkpoint must hold, and what is dropped and why.

    Args:
        expected: What it would hold if it were not quantized.
        found: Its tensors; in FP8 and NVFP4 their dtypes say which are quantized.
        weight_format: How.

    Raises:
        UserError: (a ``ValueError``) naming a tensor that is quantized and no
            projection.
    """
    tensors: Expected = {}
    projections = []
    for name, tensor in expected.items():
        if is_projection(tensor.graph):
            projections.append(name)
            tensors |= weight_format.tensors(name, tensor, found)
        else:
            _check_not_quantized(name, found)
            tensors[name] = tensor
    return tensors, weight_format.dropped(projections, found)


def _check_not_quantized(name: str, found: Mapping[str, WeightData]) -> None:
    for part in (name + "_scale", name + "_packed"):
        if part in found:
            raise UserError(
                f"{name} is quantized (there is {part}); max_mistral supports that "
                "of the projections of the blocks only. Take the model's bfloat16 "
                "checkpoint, or a GGUF file on a CPU."
            )


def check_known(
    weight_format: WeightFormat | None,
    scheme: str,
    found: Mapping[str, WeightData],
    source: str,
) -> None:
    """Raises a ``UserError`` if it is not known how to read quantized tensors.

    Args:
        weight_format: What the checkpoint's config says.
        scheme: Whose names the tensors have, as of :mod:`..weights.names`.
        found: The tensors.
        source: What to call the checkpoint in a message.
    """
    if weight_format is None:
        for weight in found.values():
            if weight.dtype in SCALED:
                raise UserError(
                    f"{weight.name} of {source} is {weight.dtype.name}, but neither "
                    "config.json has a quantization_config nor is there a "
                    "hf_quant_config.json. Fetch the file that belongs to the "
                    "checkpoint."
                )
    elif scheme == "native" and not weight_format.reads_native:
        raise UserError(
            f"{source} is quantized and has Mistral's own names; max_mistral supports "
            "that in FP8 with one scale per tensor only. Use the checkpoint with "
            "Hugging Face's names."
        )
