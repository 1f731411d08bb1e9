"""Hugging Face safetensors, in one file or several, to graph weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max.dtype import DType
from max.graph.weights import WeightData, Weights
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib.config.model_config import _select_quantization_encoding
from max.pipelines.modeling.config_enums import supported_encoding_dtype
from transformers import PretrainedConfig

from ..errors import UserError
from ..model_config import MistralConfig
from .names import check_tensors, dropped_tensors, expected_tensors

_FLOATS = (DType.float32, DType.bfloat16, DType.float16)


def convert_safetensor_state_dict(
    state_dict: Mapping[str, Weights],
    huggingface_config: PretrainedConfig,
    pipeline_config: PipelineConfig,
    **_: Any,
) -> dict[str, WeightData]:
    """Renames a checkpoint's tensors to the graph's and casts them to its dtype.

    Args:
        state_dict: The tensors by their names in the checkpoint.
        huggingface_config: Gives the names and shapes that must be there.
        pipeline_config: Gives the encoding that MAX resolved.

    Raises:
        UserError: (a ``ValueError``) naming what is missing, unknown,
            misshapen, or of a dtype other than float32, bfloat16, float16.
    """
    source = pipeline_config.model.model_path
    tensors = {name: weight.data() for name, weight in state_dict.items()}
    expected = expected_tensors(huggingface_config, "huggingface")
    check_tensors(
        {n: tuple(int(d) for d in t.shape) for n, t in tensors.items()},
        expected,
        dropped_tensors(huggingface_config, "huggingface"),
        source,
    )
    dtype = supported_encoding_dtype(
        _select_quantization_encoding(
            pipeline_config.model, MistralConfig.DEFAULT_ENCODING
        )
    )
    weights = {}
    for name, tensor in expected.items():
        found = tensors[name]
        if found.dtype not in _FLOATS:
            raise UserError(
                f"{name} of {source} is {found.dtype.name}; max_mistral reads "
                "float32, bfloat16 and float16 safetensors."
            )
        weights[tensor.graph] = found.astype(dtype)
    return weights
