"""The engines of ``benchmarks/gpu.py``, but for transformers, which is as on a CPU."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorType, ops

from benchmarks.measure import PREFILL, Prompts
from benchmarks.models import stock
from benchmarks.worker import MaxMistral
from workbench import check_device

# Requests at a time, tokens of each before, steps timed. Together the tokens
# are fewer than the 8,192 that MAX takes in one step by default.
DECODES = {f"decode_{batch}": (batch, 100, 64) for batch in (1, 8, 64)}
BASE = "MAX"
# Of prompt and answer. scripts/gpu_steps.py gives it to max serve too, so that MAX can
# find there the graph that it has compiled here.
MAX_LENGTH = PREFILL + 128
# For weights, KV cache and a step's activations; MAX would take all that is free.
GPU_BYTES = 24e9


class OnGpu(MaxMistral):
    """A model of MAX's in bfloat16, ours or the built-in one."""

    def __init__(self, folder: Path, name: str) -> None:
        from max.nn.transformer import ReturnLogits
        from max.pipelines.architectures.llama3 import llama_arch
        from max.pipelines.architectures.mistral import mistral_arch as built_in

        from max_mistral.arch import mistral_arch as ours
        from workbench.runner import Runner

        share: dict[str, float] = {}
        if not check_device.is_dry():
            total = check_device.device().stats["total_memory"]
            share = {"device_memory_utilization": min(0.9, GPU_BYTES / total)}
        flags = {
            **check_device.flags("bfloat16"),
            **share,
            "custom_architectures": ["max_mistral"] if name != BASE else [],
            "max_length": MAX_LENGTH,
            "max_batch_size": max(batch for batch, _, _ in DECODES.values()),
        }
        arch = built_in if name == BASE else ours
        if name == BASE and check_device.is_dry():
            # Of MAX's own, Mistral runs on GPUs alone, and Llama on a CPU too.
            folder, arch = stock(folder), llama_arch
        self.runner = Runner(folder, ReturnLogits.LAST_TOKEN, flags, arch)
        self.running = self.runner.claim([[1]])
        self.likeliest: Any = None
        self.start([[1]])()  # compiles the choice, before anything is timed

    def choose(self, logits: Any) -> Iterable[int]:
        """See :class:`MaxMistral`; here on the GPU, as torch and ``max serve`` do.

        Copying the logits of 64 requests to the host, 8 MB, would take a good part
        of the time that is measured.
        """
        if self.likeliest is None:
            ref = DeviceRef.from_device(logits.device)
            graph = choice(logits.dtype, int(logits.shape[-1]), ref)
            self.likeliest = self.runner.session.load(graph)
        (chosen,) = self.likeliest.execute(logits)
        return chosen.to_numpy().reshape(-1)


def choice(dtype: DType, width: int, device: DeviceRef) -> Graph:
    """Returns a graph of the likeliest of ``width`` tokens, for each request."""
    logits = TensorType(dtype, ["requests", width], device)
    with Graph("choice", input_types=[logits]) as graph:
        (value,) = graph.inputs
        graph.output(ops.argmax(value.tensor, axis=-1))
    return graph


class Vllm:
    """vLLM's engine in this process, step by step, bfloat16 with captured graphs.

    A step has its scheduler and its sampling too, which the others have not.
    """

    def __init__(self, folder: Path) -> None:
        # Its engine is in a process of its own otherwise, and steps by itself.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self.kv_bytes = 0
        self.engine = vllm.LLM(
            str(folder),
            dtype="bfloat16",
            max_model_len=MAX_LENGTH,
            enable_prefix_caching=False,
        ).llm_engine
        self.greedy = functools.partial(
            vllm.SamplingParams, temperature=0, ignore_eos=True, detokenize=False
        )
        self.running: list[str] = []
        self.names = map(str, itertools.count())

    def start(self, prompts: Prompts) -> Callable[[], object]:
        """See :class:`Engine`."""
        self.engine.abort_request(self.running)
        self.running = []
        for prompt in prompts:
            self.running.append(next(self.names))
            answer = self.greedy(max_tokens=MAX_LENGTH - 1 - len(prompt))
            tokens = {"prompt_token_ids": prompt}
            self.engine.add_request(self.running[-1], tokens, answer)
        step: Callable[[], object] = self.engine.step
        return step
