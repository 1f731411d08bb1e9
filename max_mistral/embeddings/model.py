"""Loads, compiles and runs the graph that embeds texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.engine import InferenceSession, Model
from max.graph import default_custom_extensions_scope
from max.graph.weights import WeightData, Weights, WeightsAdapter
from max.nn.kv_cache import KVCacheInputs
from max.nn.transformer import ReturnLogits
from max.pipelines.context import TextContext
from max.pipelines.kv_cache import load_kv_manager
from max.pipelines.lib import (
    KVCacheConfig,
    ModelInputs,
    ModelOutputs,
    PipelineConfig,
    PipelineModel,
)
from max.pipelines.lib.graph_specs import GraphRole, GraphSpec
from max.pipelines.lib.interfaces.batch_processor import (
    build_single_replica_ragged_token_arrays,
)
from max.pipelines.lib.memory_estimation import MemoryPlan
from max.pipelines.lib.utils import parse_state_dict_from_weights
from typing_extensions import override

from ..build import build_graph, graph_spec
from ..gpu_matmul.matmuls import use_right_matmul
from ..inputs import MistralInputs
from ..model_config import MistralConfig
from ..own_folders import note_use
from ..weights.unchanged import unchanged
from ..workarounds.graph_cache import find_at_once
from ..workarounds.orphans import end_with_the_server
from ..workarounds.run_graph import run_graph
from .config import MistralEmbeddingConfig


@dataclass
class MistralTexts(ModelInputs):
    """A batch of texts."""

    contexts: Sequence[TextContext]


class MistralEmbeddingModel(PipelineModel[TextContext, MistralEmbeddingConfig, Model]):
    """A Mistral that returns an embedding of each text, as MAX's pipeline runs it.

    The blocks are those of the model that generates. Their keys and values are
    in a cache of MAX's that has one layer, for nobody reads them but the block
    itself, and that holds one step's texts, for nothing comes after it.

    See :class:`.MistralModel` for the arguments.
    """

    model_config_cls: ClassVar[type[Any]] = MistralEmbeddingConfig

    model: Model
    """The compiled graph with its weights, ready to run."""

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        kv_cache_config: KVCacheConfig,
        weights: Weights,
        adapter: WeightsAdapter | None = None,
        return_logits: ReturnLogits = ReturnLogits.ALL,
        *,
        memory_plan: MemoryPlan,
        max_batch_size: int | None = None,
    ) -> None:
        find_at_once(session)
        note_use(pipeline_config.model.model_path)
        super().__init__(
            pipeline_config,
            session,
            devices,
            kv_cache_config,
            weights,
            adapter,
            return_logits,
            memory_plan=memory_plan,
            max_batch_size=max_batch_size or memory_plan.planned_max_batch_size,
        )
        self.config = self.arch_config_as(MistralEmbeddingConfig)
        kernels = use_right_matmul(
            self.config.decoder, pipeline_config, session, self.devices
        )
        self.kv_manager = load_kv_manager(
            self.config.kv_params,
            max_batch_size=self.config.step_pages,  # of a page or more each
            max_seq_len=self.max_seq_len,
            session=session,
            available_cache_memory=self.config.cache_bytes,
            is_di_enabled=False,
            model_name=pipeline_config.model.model_name,
            max_num_input_tokens=None,
        )
        self._has_run = False
        end_with_the_server()
        model = pipeline_config.model
        with unchanged(model), default_custom_extensions_scope(*kernels):
            self.model = self.load_graphs(session)[GraphRole.ENCODER]

    @override
    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> MistralTexts:
        """Returns the inputs of a batch; :meth:`execute` cuts it into steps.

        Args:
            replica_batches: One batch of contexts.
            kv_cache_inputs: Not used; a step has a cache of its own.
            return_n_logits: Not used.
        """
        (contexts,) = replica_batches
        return MistralTexts(contexts)

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Returns the embeddings, float32 ``[texts, hidden_size]``, as ``logits``."""
        assert isinstance(model_inputs, MistralTexts)
        embedded = [self._embed(step) for step in self._steps(model_inputs.contexts)]
        return ModelOutputs(logits=Buffer.from_numpy(np.concatenate(embedded)))

    def _steps(self, contexts: Sequence[TextContext]) -> Iterator[list[TextContext]]:
        """Yields the texts in order, as many at a time as a step's cache holds.

        MAX's scheduler bounds how many texts are in a batch, not how long they are.
        """
        step: list[TextContext] = []
        room = self.config.step_pages
        for context in contexts:
            pages = self.config.pages(context.tokens.active_length)
            if pages > room:
                yield step
                step, room = [], self.config.step_pages
            step.append(context)
            room -= pages
        yield step

    def _embed(self, contexts: list[TextContext]) -> npt.NDArray[np.float32]:
        """Returns the embeddings of one step's texts, ``[texts, hidden_size]``."""
        claimed = []
        try:
            for context in contexts:
                self.kv_manager.claim(context)
                claimed.append(context)
                self.kv_manager.alloc(context)
            tokens, row_offsets = build_single_replica_ragged_token_arrays(contexts)
            device = self.devices[0]
            inputs = MistralInputs(
                Buffer.from_numpy(tokens).to(device),
                Buffer.from_numpy(row_offsets).to(device),
                list(self.signal_buffers),
                Buffer.from_numpy(np.ones(1, np.int64)),
                kv_cache_inputs=self.kv_manager.runtime_inputs([contexts]),
            )
            (embeddings,) = run_graph(
                self.model, device, inputs.buffers, first=not self._has_run
            )
            self._has_run = True
            return embeddings.to_numpy().copy()
        finally:
            for context in claimed:
                self.kv_manager.release(context)

    @override
    def _load_state_dict(self) -> dict[str, WeightData]:
        assert self.adapter is not None
        return parse_state_dict_from_weights(
            self.pipeline_config,
            self.weights,
            partial(
                self.adapter,
                kernel_mode=self.config.decoder.kernel_mode,
                headless=True,
            ),
        )

    @override
    def _create_model_config(
        self, state_dict: dict[str, WeightData]
    ) -> MistralEmbeddingConfig:
        self._state_dict = state_dict
        return self.config

    @override
    def graph_specs(self, model_config: MistralEmbeddingConfig) -> dict[str, GraphSpec]:
        decoder: MistralConfig = model_config.decoder.finalize(self._state_dict)
        graph = build_graph(decoder, self._state_dict)
        # The graph holds what it binds; let the rest go.
        self._state_dict = {}
        spec = graph_spec(graph, "mistral_embeddings", self._bind_graph_inputs)
        return {GraphRole.ENCODER: spec}
