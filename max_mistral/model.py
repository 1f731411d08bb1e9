"""Loads, compiles and runs the graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from max.driver import Buffer, Device, is_virtual_device_mode
from max.engine import InferenceSession, Model
from max.graph import BufferType, TensorType, default_custom_extensions_scope
from max.graph.weights import (
    WeightData,
    Weights,
    WeightsAdapter,
    weights_format,
)
from max.nn.kv_cache import KVCacheInputs
from max.nn.transformer import ReturnLogits
from max.pipelines.context import TextContext
from max.pipelines.lib import (
    PIPELINE_REGISTRY,
    KVCacheConfig,
    ModelInputs,
    ModelOutputs,
    PipelineConfig,
    PipelineModelWithKVCache,
)
from max.pipelines.lib.graph_specs import GraphRole, GraphSpec
from max.pipelines.lib.memory_estimation import MemoryEstimator, MemoryPlan
from max.pipelines.lib.utils import parse_state_dict_from_weights
from transformers import PretrainedConfig
from typing_extensions import override

from .batch_processor import MistralBatchProcessor
from .build import build_graph, graph_spec
from .errors import UserError
from .gpu_matmul.matmuls import use_right_matmul
from .gpu_matmul.self_check import MOST_ROWS
from .inputs import MistralInputs
from .kv_room import with_room
from .model_config import MistralConfig
from .own_folders import note_use
from .weight_adapters import WEIGHT_ADAPTERS, convert_safetensor_state_dict
from .weights.unchanged import unchanged
from .workarounds.graph_cache import find_at_once
from .workarounds.log_probabilities import EchoLogProbabilities
from .workarounds.orphans import end_with_the_server
from .workarounds.prompt_chunks import let_grammars_wait
from .workarounds.run_graph import run_graph


class MistralModel(
    EchoLogProbabilities,
    PipelineModelWithKVCache[TextContext, MistralConfig, Model],
):
    """A Mistral as MAX's pipelines run it, and as a script may.

    Args:
        pipeline_config: What the user asked for.
        session: The session that compiles and runs the graph.
        devices: The devices to run on; several run tensor-parallel, or as
            many replicas as ``data_parallel_degree`` says.
        kv_cache_config: How the paged KV cache is laid out.
        weights: The checkpoint's tensors.
        adapter: Renames, casts and packs them; by default the one for the
            format of the weight files.
        return_logits: Which logits :meth:`execute` returns.
        memory_plan: How long and how large a batch may be; by default planned
            from ``pipeline_config`` as MAX does.
        max_batch_size: Most requests in a batch of one replica; by default the
            plan's.
    """

    model_config_cls: ClassVar[type[Any]] = MistralConfig
    batch_processor_cls: ClassVar[type[MistralBatchProcessor]] = MistralBatchProcessor

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
        return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
        *,
        memory_plan: MemoryPlan | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        if memory_plan is None:
            architecture = PIPELINE_REGISTRY.architecture_for_config(pipeline_config)
            if architecture is None or architecture.pipeline_model is not type(self):
                raise UserError(
                    "MAX does not know max_mistral's architectures. Add "
                    'custom_architectures=["max_mistral"] to the pipeline config, or '
                    "pass memory_plan."
                )
            memory_plan = MemoryEstimator.plan(pipeline_config, architecture)
        find_at_once(session)
        note_use(pipeline_config.model.model_path)
        super().__init__(
            pipeline_config,
            session,
            devices,
            kv_cache_config=kv_cache_config,
            weights=weights,
            adapter=adapter
            or WEIGHT_ADAPTERS.get(
                weights_format(pipeline_config.model.weight_path),
                convert_safetensor_state_dict,
            ),
            return_logits=return_logits,
            memory_plan=memory_plan,
            max_batch_size=max_batch_size or memory_plan.planned_max_batch_size,
        )
        if memory_plan.available_cache_memory and not is_virtual_device_mode():
            self.kv_params = with_room(
                self.kv_params,
                memory_plan.available_cache_memory,
                self.max_seq_len,
                pipeline_config.runtime.max_num_input_tokens,
            )
        self._last_inputs: MistralInputs | None = None
        let_grammars_wait()
        end_with_the_server()
        self.model = self.load_model(session)

    @classmethod
    def calculate_max_seq_len(
        cls,
        pipeline_config: PipelineConfig,
        huggingface_config: PretrainedConfig,
    ) -> int:
        """See :meth:`MistralConfig.calculate_max_seq_len`."""
        return MistralConfig.calculate_max_seq_len(pipeline_config, huggingface_config)

    def graph_inputs(self) -> tuple[TensorType | BufferType, ...]:
        """Returns the types of the graph's inputs, in execution order."""
        assert isinstance(self.batch_processor, MistralBatchProcessor)
        return tuple(
            self.batch_processor.get_symbolic_inputs(
                kv_params=self.kv_params, device_refs=self.device_refs
            )
        )

    def load_model(self, session: InferenceSession) -> Model:
        """Loads the weights, strictly, and compiles the graph.

        Raises:
            UserError: (a ``ValueError``) if the checkpoint does not fit its
                config or changes meanwhile, or no matmul is right on this GPU;
                see :mod:`.gpu_matmul.matmuls`.
        """
        config = self.arch_config_as(MistralConfig)
        # The head runs on a row of each request, or on those of all tokens.
        last = self.return_logits is ReturnLogits.LAST_TOKEN
        kernels = use_right_matmul(
            config,
            self.pipeline_config,
            session,
            self.devices,
            self.max_batch_size if last else config.step_tokens or MOST_ROWS,
        )
        # To the end: what MAX has mapped it copies to a GPU late.
        model = self.pipeline_config.model
        with unchanged(model), default_custom_extensions_scope(*kernels):
            return self.load_graphs(session)[GraphRole.DECODER]

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one step: writes the KV cache, returns float32 logits.

        Raises:
            UserError: (a ``ValueError``) if the inputs come from
                :meth:`prepare_next_token_inputs` and their
                ``kv_cache_inputs`` still describe the step before.
        """
        assert isinstance(model_inputs, MistralInputs)
        assert model_inputs.kv_cache_inputs is not None
        last = self._last_inputs
        if (
            last is not None
            and last is not model_inputs
            and last.kv_cache_inputs is model_inputs.kv_cache_inputs
        ):
            raise UserError(
                "kv_cache_inputs describe the step that ran last. Before each "
                "step update the contexts, call kv_manager.alloc(context) for "
                "each, and set model_inputs.kv_cache_inputs = "
                "kv_manager.runtime_inputs([contexts])."
            )
        self._last_inputs = model_inputs
        outputs = run_graph(
            self.model, self.devices[0], model_inputs.buffers, first=last is None
        )
        assert self.batch_processor is not None
        return self.batch_processor.process_outputs(outputs)

    @override
    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> MistralInputs:
        """Returns the inputs of a step over each context's active tokens.

        Args:
            replica_batches: A batch of contexts for each data-parallel replica.
            kv_cache_inputs: From the KV cache manager's ``runtime_inputs``.
            return_n_logits: How many trailing logits per request
                ``ReturnLogits.VARIABLE`` returns.
        """
        inputs = super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits
        )
        assert isinstance(inputs, MistralInputs)
        return inputs

    def prepare_next_token_inputs(
        self, next_tokens: Buffer, prev_model_inputs: ModelInputs
    ) -> MistralInputs:
        """Returns the inputs of the next decode step, one token per request.

        MAX 26.7 itself never calls this; a script's own decode loop does. The
        KV cache inputs are passed on as they are: the caller advances them,
        before or after, with ``kv_manager.runtime_inputs``.

        Args:
            next_tokens: int64 ``[batch]``.
            prev_model_inputs: The inputs of the step before.
        """
        assert isinstance(prev_model_inputs, MistralInputs)
        assert isinstance(self.batch_processor, MistralBatchProcessor)
        return self.batch_processor.prepare_next_token_inputs(
            next_tokens, prev_model_inputs
        )

    @override
    def _load_state_dict(self) -> dict[str, WeightData]:
        assert self.adapter is not None
        mode = self.arch_config_as(MistralConfig).kernel_mode
        return parse_state_dict_from_weights(
            self.pipeline_config,
            self.weights,
            partial(self.adapter, kernel_mode=mode),
        )

    @override
    def _create_model_config(self, state_dict: dict[str, WeightData]) -> MistralConfig:
        self._state_dict = state_dict
        config = self.arch_config_as(MistralConfig)
        return config.finalize(state_dict, self.return_logits)

    @override
    def graph_specs(self, model_config: MistralConfig) -> dict[str, GraphSpec]:
        graph = build_graph(model_config, self._state_dict)
        # The graph holds what it binds; let the rest go.
        self._state_dict = {}
        spec = graph_spec(graph, "mistral", self._bind_graph_inputs)
        return {GraphRole.DECODER: spec}
