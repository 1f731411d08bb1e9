"""MAX's weight adapter for GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max.graph.weights import WeightData, Weights
from max.pipelines.lib import PipelineConfig
from transformers import PretrainedConfig

from ..errors import UserError
from ..kernels import KernelMode
from ..model_config import MistralConfig
from ..sharing import Sharing
from .gguf_file import GGUFCheckpoint
from .heads import copy_kv_heads
from .packed import PackedWeight, runs_packed


def convert_gguf_state_dict(
    state_dict: Mapping[str, Weights],
    huggingface_config: PretrainedConfig,
    pipeline_config: PipelineConfig,
    kernel_mode: KernelMode | None = None,
    **_: Any,
) -> dict[str, WeightData]:
    """Reads the file itself: MAX's own reader lacks half of the types.

    Args:
        state_dict: The tensors as MAX found them; not used.
        huggingface_config: Gives the names and shapes that must be there.
        pipeline_config: Gives the file, the devices and the encoding.
        kernel_mode: Which CPU kernels run; by default what the environment says.

    Raises:
        UserError: (a ``ValueError``) if the file is no complete GGUF file of a
            Mistral or does not fit the config, or there are several files.
    """
    paths = pipeline_config.model.resolved_weight_paths()
    if len(paths) != 1:
        raise UserError(
            f"--weight-path names {len(paths)} GGUF files; max_mistral reads one. "
            "Merge a split file with llama.cpp's llama-gguf-split --merge."
        )
    dtype = MistralConfig.activation_dtype(pipeline_config.model)
    checkpoint = GGUFCheckpoint(paths[0], vocabulary=False)
    packed = runs_packed(pipeline_config, kernel_mode)
    found = checkpoint.weights(huggingface_config, packed=packed)
    weights = {
        name: weight if isinstance(weight, PackedWeight) else weight.astype(dtype)
        for name, weight in found
    }
    sharing = Sharing.of(huggingface_config, pipeline_config.model)
    return copy_kv_heads(weights, sharing)
