"""From a batch of requests to :class:`MistralInputs`, and from raw outputs back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from max import tree
from max.driver import Buffer
from max.graph import BufferType, DeviceRef, TensorType
from max.nn.kv_cache import KVCacheInputs
from max.nn.kv_cache.cache_params import KVCacheParamInterface
from max.pipelines.architectures.llama3.batch_processor import (
    Llama3BatchProcessorBase,
)
from max.pipelines.context import TextContext

from .inputs import MistralInputs, input_tree


class MistralBatchProcessor(Llama3BatchProcessorBase[MistralInputs]):
    """Lays the requests end to end; MAX's base does the rest.

    The base stages tokens and offsets in device buffers that live as long as
    the model, which captured device graphs need: they replay on the addresses
    that they were captured with.
    """

    def get_symbolic_inputs(
        self,
        *,
        kv_params: KVCacheParamInterface,
        device_refs: list[DeviceRef],
    ) -> list[TensorType | BufferType]:
        """Returns the types of the graph's inputs, in execution order."""
        replicas = self.runtime.pipeline_config.model.data_parallel_degree
        return tree.leaves(input_tree(kv_params, device_refs, replicas))

    def _stage_ragged_token_inputs(
        self, context_batch: Sequence[TextContext]
    ) -> tuple[Buffer, Buffer, Buffer]:
        staged = super()._stage_ragged_token_inputs(context_batch)
        # The base hands them to no one.
        self._host_row_offsets = staged[-1]
        return staged

    def prepare_next_token_inputs(
        self, next_tokens: Buffer, previous: MistralInputs
    ) -> MistralInputs:
        """Returns the inputs of a step with one new token per request.

        Args:
            next_tokens: int64 ``[batch]``.
            previous: The inputs of the step before.
        """
        assert self._input_row_offsets_prealloc is not None
        rows = previous.input_row_offsets.shape[0]
        host_rows = Buffer.from_numpy(np.arange(rows, dtype=np.uint32))
        has_replicas = previous.data_parallel_splits is not None
        return MistralInputs(
            next_tokens.to(self.runtime.devices[0]),
            # The prepared ones are as many as a replica's requests.
            host_rows.to(self.runtime.devices[0])
            if has_replicas
            else self._input_row_offsets_prealloc[:rows],
            previous.signal_buffers,
            previous.return_n_logits,
            kv_cache_inputs=previous.kv_cache_inputs,
            data_parallel_splits=previous.data_parallel_splits,
            host_row_offsets=host_rows if has_replicas else None,
        )

    def _make_inputs(
        self,
        *,
        tokens: Buffer,
        input_row_offsets: Buffer,
        return_n_logits: Buffer,
        signal_buffers: list[Buffer],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None,
        data_parallel_splits: Buffer | None,
    ) -> MistralInputs:
        model = self.runtime.pipeline_config.model
        # MAX has a buffer for each device; the graph wants them only where
        # several devices share a replica.
        shared = len(model.device_specs) > model.data_parallel_degree
        return MistralInputs(
            tokens,
            input_row_offsets,
            signal_buffers if shared else [],
            return_n_logits,
            kv_cache_inputs=kv_cache_inputs,
            data_parallel_splits=data_parallel_splits,
            host_row_offsets=(
                None if data_parallel_splits is None else self._host_row_offsets
            ),
        )
