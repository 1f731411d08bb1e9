"""How many devices share a model, and how they share its heads.

``--devices gpu:0,1,2,3 --data-parallel-degree 2`` runs two replicas, each
tensor-parallel on two devices.
"""

from __future__ import annotations

from max.pipelines.lib import MAXModelConfig
from transformers import PretrainedConfig

from .errors import UserError
from .hf_config import text_config


def tensor_parallel_degree(model_config: MAXModelConfig) -> int:
    """Returns how many devices share one replica of the model.

    Raises:
        UserError: (a ``ValueError``) if the devices do not divide into
            ``data_parallel_degree`` replicas.
    """
    devices, replicas = (
        len(model_config.device_specs),
        model_config.data_parallel_degree,
    )
    if replicas < 1 or devices % replicas:
        raise UserError(
            f"data_parallel_degree is {replicas}, but {devices} devices do not "
            "divide into as many replicas. Set --data-parallel-degree to a divisor "
            f"of {devices}."
        )
    return devices // replicas


def replicated_kv_heads(config: PretrainedConfig, model_config: MAXModelConfig) -> int:
    """Returns the key-value heads of a replica's devices together, copies included.

    Where there are fewer heads than devices, each head is on several.

    Raises:
        UserError: (a ``ValueError``) if the heads do not divide evenly.
    """
    text, degree = text_config(config), tensor_parallel_degree(model_config)
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    if heads % degree or (groups % degree and degree % groups):
        raise UserError(
            f"{degree} devices cannot share {heads} heads with {groups} key-value "
            f"heads: {degree} must divide {heads}, and divide {groups} or be a "
            "multiple of it. Name other --devices, or set --data-parallel-degree."
        )
    return max(groups, degree)
