"""Runs a model the way a script does: no pipeline, no scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, DeviceSpec, load_devices
from max.engine import InferenceSession
from max.graph.weights import load_weights, weights_format
from max.nn.transformer import ReturnLogits
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import load_kv_manager
from max.pipelines.lib import PipelineArgs, PipelineConfig, SupportedArchitecture
from max.pipelines.lib.memory_estimation import MemoryEstimator

from max_mistral.arch import mistral_arch

Array = npt.NDArray[np.float32]


def make_pipeline_config(folder: Path | str, **kwargs: Any) -> PipelineConfig:
    """Returns what the command line would build from the same flags.

    But for the KV cache, which is float32 on a CPU: numbers are compared. With
    ``kv_cache_format=None`` it is what users get.
    """
    defaults: dict[str, Any] = {
        "custom_architectures": ["max_mistral"],
        "device_specs": [DeviceSpec.cpu()],
        "quantization_encoding": "float32",
        "max_length": 256,
        "max_batch_size": 4,
    }
    if "device_specs" not in kwargs:
        defaults["kv_cache_format"] = "float32"
    return PipelineConfig.from_args(
        PipelineArgs.from_flat_kwargs(model_path=str(folder), **defaults | kwargs)
    )


@dataclass
class Runner:
    """A model with its KV cache, run step by step.

    Args:
        folder: The checkpoint.
        return_logits: Which logits the graph returns.
        config: Flags beyond those of :func:`make_pipeline_config`.
        arch: Whose model it is. For one of MAX's own, ``config`` must have
            ``custom_architectures=[]``.
    """

    folder: Path
    return_logits: ReturnLogits = ReturnLogits.ALL
    config: dict[str, Any] = field(default_factory=dict)
    arch: SupportedArchitecture = field(default_factory=lambda: mistral_arch)

    def __post_init__(self) -> None:
        pipeline_config = make_pipeline_config(self.folder, **self.config)
        devices = load_devices(pipeline_config.model.device_specs)
        self.session = InferenceSession(devices=devices)
        plan = MemoryEstimator.plan(pipeline_config, self.arch)
        paths = pipeline_config.model.resolved_weight_paths()
        pipeline_model: Any = self.arch.pipeline_model
        self.model = pipeline_model(
            pipeline_config,
            self.session,
            devices,
            pipeline_config.model.kv_cache,
            load_weights(paths),
            adapter=self.arch.weight_adapters[weights_format(paths)],
            return_logits=self.return_logits,
            memory_plan=plan,
            max_batch_size=plan.planned_max_batch_size,
        )
        self.kv_manager = load_kv_manager(
            params=self.model.kv_params,
            max_batch_size=plan.planned_max_batch_size,
            max_seq_len=self.model.max_seq_len,
            session=self.session,
            available_cache_memory=plan.available_cache_memory,
            is_di_enabled=False,
            model_name=pipeline_config.model.model_name,
            max_num_input_tokens=pipeline_config.runtime.max_num_input_tokens,
        )

    def claim(
        self, prompts: list[list[int]], *, reuse_prefixes: bool = False
    ) -> list[TextContext]:
        """Returns contexts for ``prompts`` with a place in the KV cache.

        Prefixes of earlier requests come from the cache only on request.
        """
        if not reuse_prefixes:
            self.kv_manager.reset_prefix_cache()
        contexts = [
            TextContext(
                max_length=self.model.max_seq_len,
                tokens=TokenBuffer(np.array(prompt, dtype=np.int64)),
            )
            for prompt in prompts
        ]
        for context in contexts:
            self.kv_manager.claim(context)
        return contexts

    def release(self, contexts: list[TextContext]) -> None:
        """Gives the contexts' KV pages back."""
        for context in contexts:
            self.kv_manager.release(context)

    def kv_inputs(self, contexts: list[TextContext]) -> Any:
        """Returns the KV cache inputs of the contexts' next step."""
        for context in contexts:
            self.kv_manager.alloc(context)
        return self.kv_manager.runtime_inputs([contexts])

    def inputs(self, contexts: list[TextContext], **kwargs: Any) -> Any:
        """Returns the inputs of the contexts' next step."""
        return self.model.prepare_initial_token_inputs(
            [contexts], kv_cache_inputs=self.kv_inputs(contexts), **kwargs
        )

    def step(self, contexts: list[TextContext]) -> Any:
        """Computes the contexts' active tokens; returns the model's outputs."""
        return self.model.execute(self.inputs(contexts))

    def in_chunks(self, context: TextContext, size: int) -> Iterator[Any]:
        """Computes a context's active tokens, at most ``size`` a step.

        Yields each step's outputs.
        """
        while context.tokens.active_length > size:
            context.tokens.chunk(size)
            yield self.step([context])
            context.tokens.advance_chunk()
            self.kv_manager.step(context)
        yield self.step([context])

    def advance(self, context: TextContext, token: int) -> None:
        """Adds a token to a context, and frees the pages that windows left behind."""
        context.update(token)
        self.kv_manager.step(context)

    def generate(
        self,
        prompts: list[list[int]],
        steps: int,
        continuations: list[list[int]] | None = None,
    ) -> tuple[list[list[int]], list[Array]]:
        """Prefills the ragged batch, then decodes.

        Args:
            prompts: The requests.
            steps: How many tokens each gets.
            continuations: Those tokens; by default the likeliest.

        Returns:
            Each row's tokens (prompt and continuation), and its logits: all
            positions of the prompt with ``ReturnLogits.ALL``, its last one
            otherwise, then one row a decode step.
        """
        contexts = self.claim(prompts)
        inputs = self.inputs(contexts)
        outputs = self.model.execute(inputs)
        rows = [[part] for part in split_logits(outputs)]
        for step in range(steps):
            assert outputs.next_token_logits is not None
            last = outputs.next_token_logits.to_numpy()
            chosen = last.argmax(axis=-1).astype(np.int64)
            if continuations is not None:
                chosen = np.array([row[step] for row in continuations])
            for context, token in zip(contexts, chosen, strict=True):
                self.advance(context, int(token))
            if step == steps - 1:
                break
            inputs = self.model.prepare_next_token_inputs(
                Buffer.from_numpy(chosen), inputs
            )
            inputs.kv_cache_inputs = self.kv_inputs(contexts)
            outputs = self.model.execute(inputs)
            assert outputs.next_token_logits is not None
            for row, part in zip(
                rows, outputs.next_token_logits.to_numpy(), strict=True
            ):
                row.append(part[None].copy())
        tokens = [[int(t) for t in context.tokens.all] for context in contexts]
        self.release(contexts)
        return tokens, [np.concatenate(row) for row in rows]


def split_logits(outputs: Any) -> list[Array]:
    """Cuts ``logits`` into requests, ``[rows, vocab_size]`` each."""
    logits = outputs.logits.to_numpy().copy()
    if outputs.logit_offsets is None:
        return list(logits[:, None])
    return np.split(logits, outputs.logit_offsets.to_numpy()[1:-1].astype(int))
