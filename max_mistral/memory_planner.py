"""What MAX reserves memory by."""

from __future__ import annotations

from typing import Any

from max.pipelines.kv_cache.memory_planner import PagedMemoryPlanner

from .model_config import MistralConfig


class MistralMemoryPlanner(PagedMemoryPlanner):
    """MAX's own, for weights that grow at load.

    Args:
        config: The model's.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config = config

    def estimate_weights_size(self, pipeline_config: Any) -> int:
        """Returns the bytes of the weights: of FP8 that becomes bfloat16, twice."""
        size = super().estimate_weights_size(pipeline_config)
        doubles = isinstance(self.config, MistralConfig) and self.config.restored
        return 2 * size if doubles else size
