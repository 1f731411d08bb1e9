"""From a batch of requests to :class:`MistralInputs`, and from raw outputs back."""

from __future__ import annotations

from max import tree
from max.driver import Buffer
from max.graph import BufferType, DeviceRef, TensorType
from max.nn.kv_cache import KVCacheInputs
from max.nn.kv_cache.cache_params import KVCacheParamInterface
from max.pipelines.context import TextContext
from max.pipelines.lib.interfaces.batch_processor import (
    SingleReplicaRaggedBatchProcessor,
)

from .inputs import MistralInputs, input_tree


class MistralBatchProcessor(
    SingleReplicaRaggedBatchProcessor[TextContext, MistralInputs]
):
    """Lays the requests of one replica end to end; MAX's base does the rest."""

    def get_symbolic_inputs(
        self,
        *,
        kv_params: KVCacheParamInterface,
        device_refs: list[DeviceRef],
    ) -> list[TensorType | BufferType]:
        """Returns the types of the graph's inputs, in execution order."""
        return tree.leaves(input_tree(kv_params, device_refs))

    def _make_inputs(
        self,
        *,
        tokens: Buffer,
        input_row_offsets: Buffer,
        return_n_logits: Buffer,
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None,
        signal_buffers: list[Buffer],
    ) -> MistralInputs:
        return MistralInputs(
            tokens,
            input_row_offsets,
            signal_buffers,
            return_n_logits,
            kv_cache_inputs=kv_cache_inputs,
        )
