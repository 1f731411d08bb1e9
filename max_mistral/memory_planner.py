"""What MAX reserves memory by, and how many requests it takes at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from max.driver import Device
from max.dtype import DType
from max.pipelines.kv_cache.memory_planner import MemoryPlanner, PagedMemoryPlanner
from max.pipelines.kv_cache.registry import kv_cache_memory_size
from max.pipelines.lib import MAXModelConfig, PipelineConfig
from max.pipelines.lib.memory_estimation import MemoryEstimator

from .hf_config import text_config
from .host_memory import free_memory
from .model_config import MistralConfig
from .weights.memory import bytes_in_memory, bytes_stored

# Requests at a time on a CPU, where MAX's default is one; eight rows cost little more
# than one there.
MOST_ON_A_CPU = 8
# What their KV cache may take of the memory that the weights leave: MAX fills it with
# zeros at the start.
_SHARE = 0.25
# But what the longest sequence takes in any case, and a little more, for MAX reads once
# more how much is free.
_LONGEST = 1.25
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
        self._left = 0

    def estimate_weights_size(self, pipeline_config: Any) -> int:
        """Returns the bytes of the weights in memory, of all replicas together."""
        stored = super().estimate_weights_size(pipeline_config)
        return _in_memory(stored, self.config, pipeline_config.model)

    def estimate_activation_memory(
        self, pipeline_config: Any, huggingface_config: Any
    ) -> int:
        """Returns the bytes that the KV cache must leave.

        They are those of all rows' logits where ``--enable-echo`` wants them, or what
        :meth:`infer_max_batch_size` has left, if that is more. The first device has
        the most of them, and MAX takes as much from each.
        """
        if not pipeline_config.model.enable_echo:
            return self._left
        runtime = pipeline_config.runtime
        rows: int = runtime.max_batch_input_tokens
        if not runtime.enable_chunked_prefill:
            # MAX adds a whole prompt to a step that is not full yet.
            rows += self.config.max_seq_len
        if runtime.max_batch_size is not None:
            rows = min(rows, runtime.max_batch_size * self.config.max_seq_len)
        # On a GPU they are bfloat16 first.
        widths = {DType.float32, self.config.dtype}
        number = sum(dtype.size_in_bytes for dtype in widths)
        replicas = self.config.data_parallel_degree
        if replicas > 1:
            # Those of the others, and then of all together: see data_parallel.py.
            number += DType.float32.size_in_bytes * (2 * replicas - 1)
        size = rows * self.config.vocab_size * number * len(self.config.devices)
        return max(self._left, size)

    def infer_max_batch_size(
        self, pipeline_config: Any, devices: list[Device], weights_size: int
    ) -> int | None:
        """Returns how many requests to take at a time where nobody has said it.

        On a CPU ``MOST_ON_A_CPU``, which share a quarter of what the weights leave, or
        a little more than the longest sequence takes; one if that is not there. Where
        no request may lose its pages to others, as many as have room for the longest
        sequence each. On GPUs MAX's default.
        """
        if not _on_cpu(devices):
            return None
        model = pipeline_config.model
        utilization = model.kv_cache.device_memory_utilization
        room = free_memory() * utilization - weights_size
        cache = max(room * _SHARE, self._cache_bytes(model, 1) * _LONGEST)
        if cache > room:
            return 1
        numbers = range(MOST_ON_A_CPU, 0, -1)
        whole = next(n for n in numbers if self._cache_bytes(model, n) <= cache)
        if whole == MOST_ON_A_CPU or not _may_lose_pages(pipeline_config):
            return whole
        # MAX would take all that it believes to be free.
        free = MemoryEstimator._free_memory(devices)
        self._left = max(int(free * utilization - weights_size - cache), 0)
        return MOST_ON_A_CPU

    def _cache_bytes(self, model: MAXModelConfig, requests: int) -> int:
        """The bytes of the KV cache of so many of the longest sequences."""
        assert model.max_length is not None, "MAX has it from calculate_max_seq_len"
        return kv_cache_memory_size(
            params=self.config.get_kv_params(),
            available_cache_memory=2**62,
            max_batch_size=requests,
            max_seq_len=model.max_length,
            is_di_enabled=False,
            model_name=model.model_name,
        )


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


def _may_lose_pages(pipeline_config: PipelineConfig) -> bool:
    """Whether a request may lose its pages to others, and be read again.

    MAX counts penalties and ``min_tokens`` anew then. In another order of batches than
    its default it would never come back to such a request.
    """
    sampling = pipeline_config.sampling
    order = os.environ.get("MAX_SERVE_BATCH_PRIORITY") or "per_replica"
    counts = sampling.enable_penalties or sampling.enable_min_tokens
    return not counts and order.lower() == "per_replica"


def _in_memory(stored: int, config: MistralConfig, model: MAXModelConfig) -> int:
    """The bytes of the weights that take ``stored`` in their files."""
    assert model.huggingface_config is not None, "config was made of it"
    text = text_config(model.huggingface_config)
    packed = config.kernel_mode != "off" and config.devices[0].is_cpu()
    if packed and any(path.suffix == ".gguf" for path in model.weight_path):
        paths = model.resolved_weight_paths()
        stored = sum(bytes_stored(path, packed=True) for path in paths)
    size = bytes_in_memory(
        stored,
        text,
        config.dtype,
        # A whole config of a vision model says so where the text tower has a head.
        tied=config.tie_word_embeddings and text.tie_word_embeddings,
        packed=packed,
        quantized=config.quantization is not None,
        restored=config.restored,
    )
    return size * config.data_parallel_degree


def _on_cpu(devices: Sequence[Device]) -> bool:
    return all(device.is_host for device in devices)
