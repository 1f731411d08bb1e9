"""The seam between two MAX releases: who is called with which configs."""

from __future__ import annotations

from typing import Any

from max.pipelines.lib import MAXModelConfig, PipelineConfig
from transformers import PretrainedConfig


def find_configs(*args: Any, **kwargs: Any) -> tuple[PretrainedConfig, MAXModelConfig]:
    """Returns the HF config and the model config among two arguments.

    The reference page (26.3) calls ``calculate_max_seq_len(pipeline_config,
    huggingface_config)``; the framework (26.7) calls it with
    ``(huggingface_config, model_config)``. Either works, by position or by
    keyword; the argument that is no HF config tells them apart.

    Raises:
        TypeError: If the arguments are neither pair.
    """
    given = [*args, *kwargs.values()]
    pipelines = [a for a in given if isinstance(a, PipelineConfig)]
    models = [a for a in given if isinstance(a, MAXModelConfig)]
    models += [pipeline.model for pipeline in pipelines]
    configs = [a for a in given if isinstance(a, PretrainedConfig)]
    if not (len(given) == 2 and len(models) == len(configs) == 1):
        raise TypeError(
            "calculate_max_seq_len takes (pipeline_config, "
            "huggingface_config) or (huggingface_config, model_config), "
            f"got {[type(a).__name__ for a in given]}"
        )
    return configs[0], models[0]
