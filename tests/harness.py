"""Runs a model the way a script does: no pipeline, no scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from max import driver
from max.driver import Buffer, DeviceSpec, load_devices
from max.engine import InferenceSession
from max.graph.weights import WeightData, load_weights, weights_format
from max.nn import kernels as max_kernels
from max.nn.transformer import ReturnLogits
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import load_kv_manager
from max.pipelines.lib import PipelineArgs, PipelineConfig, SupportedArchitecture
from max.pipelines.lib.memory_estimation import MemoryEstimator

from max_mistral import MistralConfig, quantization
from max_mistral.arch import mistral_arch
from max_mistral.data_parallel import DataParallelMistral, replicate
from max_mistral.mistral import Mistral
from max_mistral.quantization import Scaled
from max_mistral.weights.finalize import finalize_scaled
from max_mistral.weights.safetensors import convert_safetensor_state_dict

Array = npt.NDArray[np.float32]


def make_pipeline_config(folder: Path | str, **kwargs: Any) -> PipelineConfig:
    """Returns what the command line would build from the same flags."""
    defaults: dict[str, Any] = {
        "custom_architectures": ["max_mistral"],
        "device_specs": [DeviceSpec.cpu()],
        "quantization_encoding": "float32",
        "max_length": 256,
        "max_batch_size": 4,
    }
    return PipelineConfig.from_args(
        PipelineArgs.from_flat_kwargs(model_path=str(folder), **defaults | kwargs)
    )


def load_safetensors(pipeline_config: PipelineConfig) -> dict[str, WeightData]:
    """Returns a checkpoint's tensors as its graph gets them."""
    model = pipeline_config.model
    return convert_safetensor_state_dict(
        dict(load_weights(model.resolved_weight_paths()).items()),
        huggingface_config=model.huggingface_config,
        pipeline_config=pipeline_config,
    )


@contextmanager
def virtual_gpus(architecture: str) -> Iterator[None]:
    """GPUs to build a graph for, where there are none: as ``max warm-cache`` does."""
    driver.set_virtual_device_api("cuda")
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(8)
    # A process remembers the first architecture that it asked for.
    named = {"accelerator_architecture_name": lambda: architecture}
    try:
        with (
            patch.multiple(max_kernels, **named),
            patch.multiple(quantization, **named),
        ):
            yield
    finally:
        driver.set_virtual_device_count(0)
        driver.set_virtual_device_target_arch("")
        driver.set_virtual_device_api("")


def build(
    pipeline_config: PipelineConfig,
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
) -> Mistral | DataParallelMistral:
    """Returns the graph's module with the checkpoint's weights in it."""
    config = MistralConfig.initialize(pipeline_config)
    config.return_logits = return_logits
    weights = load_safetensors(pipeline_config)
    if isinstance(config.quantization, Scaled):
        weights = finalize_scaled(config, config.quantization, weights)
    module: Mistral | DataParallelMistral
    if config.data_parallel_degree > 1:
        module = DataParallelMistral(config)
        weights = replicate(weights, config.data_parallel_degree)
    else:
        module = Mistral(config)
    module.load_state_dict(weights, weight_alignment=1)
    return module


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
        self.model: Any = self.arch.pipeline_model(
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


def tolerance(config: dict[str, Any], logits: Array) -> float:
    """Returns the largest difference that float32 rounding explains.

    A dot product of K terms accumulates about sqrt(K) roundings of relative
    size eps; a decoder layer has seven such products in sequence or in
    parallel, the head one more, and each adds to the residual stream that the
    logits are read from.
    """
    eps = float(np.finfo(np.float32).eps)
    terms = max(config["hidden_size"], config["intermediate_size"])
    products = 7 * config["num_hidden_layers"] + 1
    return eps * np.sqrt(terms) * products * float(np.abs(logits).max())


def relative_error(got: Array, want: Array) -> float:
    """Returns the root mean square of the difference, relative to ``want``'s."""
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def rounding_error(config: dict[str, Any], unit: float) -> float:
    """Returns the largest :func:`relative_error` that rounding operands explains.

    Where what goes into a product is rounded to a unit roundoff far above
    float32's (2^-8 in bfloat16, 2^-11 in TF32) and summed up in float32, the
    number of terms does not matter: each product is off by about ``unit``, and
    the errors of all products, which are independent, add in squares. A score
    of attention turns a relative error into an absolute one before softmax
    takes its exponential; the seeded checkpoints' scores are near 4, for their
    Q and K have a gain of 2 each. Twice that is allowed: transformers in
    bfloat16 comes to 2 to 6 times ``unit`` x sqrt(products).
    """
    products = 7 * config["num_hidden_layers"] + 1
    return 8 * unit * float(np.sqrt(products))
