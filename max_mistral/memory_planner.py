"""What MAX reserves memory by, and how many requests it takes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from max.driver import Device
from max.dtype import DType
from max.pipelines.kv_cache.memory_planner import MemoryPlanner, PagedMemoryPlanner
from max.pipelines.kv_cache.registry import kv_cache_memory_size
from max.pipelines.lib import MAXModelConfig

from .hf_config import text_config
from .host_memory import free_memory
from .model_config import MistralConfig
from .weights.memory import bytes_in_memory

# Requests at a time on a CPU, where MAX's default is one; eight rows cost little more
# than one there.
MOST_ON_A_CPU = 8
# What their KV cache may take of the memory that the weights leave: MAX fills it with
# zeros at the start.
_SHARE = 0.25
# Texts that a step embeds; they fill a GPU, and a CPU has enough with fewer.
_TEXTS = 32


class MistralMemoryPlanner(PagedMemoryPlanner):
    """MAX's own, for weights that change at load, echo, and batches on a CPU.

    Args:
        config: The model's.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config = config

    def estimate_weights_size(self, pipeline_config: Any) -> int:
        """Returns the bytes of the weights in memory, of all replicas together."""
        stored = super().estimate_weights_size(pipeline_config)
        return _in_memory(stored, self.config, pipeline_config.model)

    def estimate_activation_memory(
        self, pipeline_config: Any, huggingface_config: Any
    ) -> int:
        """Returns the bytes of all rows' logits where ``--enable-echo`` wants them."""
        if not pipeline_config.model.enable_echo:
            return 0
        runtime = pipeline_config.runtime
        rows: int = runtime.max_batch_input_tokens
        if runtime.max_batch_size is not None:
            rows = min(rows, runtime.max_batch_size * self.config.max_seq_len)
        size = rows * self.config.vocab_size * self.config.data_parallel_degree
        # On a GPU they are bfloat16 first.
        widths = {DType.float32, self.config.dtype}
        return sum(size * dtype.size_in_bytes for dtype in widths)

    def infer_max_batch_size(
        self, pipeline_config: Any, devices: list[Device], weights_size: int
    ) -> int | None:
        """Returns how many requests to take at a time where nobody has said it.

        On a CPU as many as have room for the longest sequence each in a quarter of
        what the weights leave, from one to ``MOST_ON_A_CPU``; on GPUs MAX's default.
        """
        if not _on_cpu(devices):
            return None
        model = pipeline_config.model
        free = free_memory() * model.kv_cache.device_memory_utilization
        room = int((free - weights_size) * _SHARE)
        params = self.config.get_kv_params()
        for batch in range(MOST_ON_A_CPU, 1, -1):
            needed = kv_cache_memory_size(
                params=params,
                available_cache_memory=2**62,
                max_batch_size=batch,
                max_seq_len=model.max_length,
                is_di_enabled=False,
                model_name=model.model_name,
            )
            if needed <= room:
                return batch
        return 1


class EmbeddingMemoryPlanner(MemoryPlanner):
    """For a model that embeds, whose KV cache is of one step.

    Args:
        config: A ``MistralEmbeddingConfig``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config = config

    def estimate_weights_size(self, pipeline_config: Any) -> int:
        """See :meth:`MistralMemoryPlanner.estimate_weights_size`."""
        stored = super().estimate_weights_size(pipeline_config)
        return _in_memory(stored, self.config.decoder, pipeline_config.model)

    def estimate_activation_memory(
        self, pipeline_config: Any, huggingface_config: Any
    ) -> int:
        """Returns the bytes of the KV cache of a step."""
        size: int = self.config.cache_bytes
        return size

    def infer_max_batch_size(
        self, pipeline_config: Any, devices: list[Device], weights_size: int
    ) -> int | None:
        """Returns how many texts are embedded at a time where nobody has said it."""
        return MOST_ON_A_CPU if _on_cpu(devices) else _TEXTS


def _in_memory(stored: int, config: MistralConfig, model: MAXModelConfig) -> int:
    """The bytes of the weights that take ``stored`` in their files."""
    assert model.huggingface_config is not None, "config was made of it"
    text = text_config(model.huggingface_config)
    size = bytes_in_memory(
        stored,
        text,
        config.dtype,
        # A whole config of a vision model says so where the text tower has a head.
        tied=config.tie_word_embeddings and text.tie_word_embeddings,
        packed=config.kernel_mode != "off" and config.devices[0].is_cpu(),
        quantized=config.quantization is not None,
        restored=config.restored,
    )
    return size * config.data_parallel_degree


def _on_cpu(devices: Sequence[Device]) -> bool:
    return all(device.is_host for device in devices)
