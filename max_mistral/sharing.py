"""How many devices share a model, and how they share its heads.

``--devices gpu:0,1,2,3 --data-parallel-degree 2`` runs two replicas, each
tensor-parallel on two devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from max.pipelines.lib import MAXModelConfig
from transformers import PretrainedConfig

from .errors import UserError
from .hf_config import text_config


@dataclass(frozen=True)
class Sharing:
    """How devices share a model. Valid once made.

    Raises:
        UserError: (a ``ValueError``) if the devices do not divide into replicas,
            or the heads do not divide among the devices of one.
    """

    num_devices: int
    num_replicas: int
    """MAX's ``data_parallel_degree``."""
    num_attention_heads: int
    num_key_value_heads: int
    """As the checkpoint has them."""

    @classmethod
    def of(cls, config: PretrainedConfig, model_config: MAXModelConfig) -> Self:
        """Returns the sharing that the user asked for.

        Args:
            config: The HF config, which has the heads.
            model_config: Has the devices and the number of replicas.
        """
        text = text_config(config)
        return cls(
            len(model_config.device_specs),
            model_config.data_parallel_degree,
            text.num_attention_heads,
            text.num_key_value_heads,
        )

    def __post_init__(self) -> None:
        devices, replicas = self.num_devices, self.num_replicas
        if replicas < 1 or devices % replicas:
            raise UserError(
                f"data_parallel_degree is {replicas}, but {devices} devices do not "
                "divide into as many replicas. Set --data-parallel-degree to a "
                f"divisor of {devices}."
            )
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        degree = self.tensor_parallel_degree
        if heads % degree or (kv_heads % degree and degree % kv_heads):
            raise UserError(
                f"{degree} devices cannot share {heads} heads with {kv_heads} "
                f"key-value heads: {degree} must divide {heads}, and divide "
                f"{kv_heads} or be a multiple of it. Name other --devices, or set "
                "--data-parallel-degree."
            )

    @property
    def tensor_parallel_degree(self) -> int:
        """How many devices share one replica."""
        return self.num_devices // self.num_replicas

    @property
    def kv_head_copies(self) -> int:
        """On how many devices of a replica each key-value head is."""
        return max(1, self.tensor_parallel_degree // self.num_key_value_heads)

    @property
    def total_kv_heads(self) -> int:
        """The key-value heads of a replica's devices together, copies included."""
        return self.num_key_value_heads * self.kv_head_copies
