"""Where a token's time goes in ``max generate``.

    python -m benchmarks.timeline --model FOLDER --devices cpu ...

Runs ``max generate`` with these arguments in this process, with clocks around
its parts, and prints the milliseconds that each takes of a decode step. Then
runs the model's linear layers by themselves, in a graph of their own.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
from max._entrypoints.pipelines import main as max_main
from max.driver import CPU, Buffer
from max.engine import InferenceSession
from max.graph import (
    DeviceRef,
    Graph,
    TensorType,
    TensorValue,
    Value,
    default_custom_extensions_scope,
)
from max.pipelines.lib.generate import GenerateIterator

from max_mistral import MistralModel, kernels
from max_mistral.build import build_graph
from max_mistral.lookup.pipeline import LookupPipeline

STEP, REST = "  a step of the pipeline", "    KV cache, the rest"
# What is timed; what is indented is part of what stands above it.
PARTS: dict[str, tuple[Any, str] | None] = {
    "a token": None,
    STEP: (GenerateIterator, "step"),
    "    inputs": (MistralModel, "prepare_initial_token_inputs"),
    "    the model": (MistralModel, "execute"),
    "    sampler": (LookupPipeline, "_sample"),
    "    tokens taken": (LookupPipeline, "_commit"),
    REST: None,
}


def linear_layers(model: MistralModel, repeats: int = 50) -> float:
    """Returns the median seconds of a token's linear layers, on a CPU."""
    weights = model._load_state_dict()
    config = model._create_model_config(weights)
    decoder: Any = build_graph(config, weights)
    width = config.num_attention_heads * config.head_dim

    def forward(value: Value[Any]) -> TensorValue:
        x = value.tensor
        for block in decoder.layers:
            attention: Any = block.self_attn
            x = block.mlp(attention.o_proj(attention.qkv_proj(x)[:, :width]))
        head: Any = decoder.lm_head
        return head([x], [])[0]

    token = TensorType(config.dtype, ["rows", config.hidden_size], DeviceRef.CPU())
    extensions = [kernels.library()] if config.encodings else []
    with default_custom_extensions_scope(*extensions):
        graph = Graph("linear_layers", forward, input_types=[token])
    session = InferenceSession(devices=[CPU()])
    registry = decoder.state_dict(auto_initialize=False)
    compiled = session.load(graph, weights_registry=registry)
    x = Buffer.from_numpy(np.ones((1, config.hidden_size), np.float32))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        compiled.execute(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    models: list[MistralModel] = []
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, attribute: str, part: str) -> None:
        function = getattr(owner, attribute)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if owner is MistralModel:
                models[:] = args[:1]
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part].append(time.perf_counter() - start)
            if attribute == "step":
                spent["ends"].append(time.perf_counter())
            return result

        setattr(owner, attribute, wrapper)

    for part, place in PARTS.items():
        if place:
            timed(*place, part)
    sys.argv[:1] = ["max", "generate", "--custom-architectures", "max_mistral"]
    try:
        max_main()
    except SystemExit as end:
        if end.code:
            raise
    ends = spent.pop("ends", [])
    if len(ends) < 3:
        sys.exit("No token was decoded: give a prompt and --max-new-tokens.")
    spent["a token"] = [b - a for a, b in pairwise(ends)]
    steps = len(ends) - 1
    # The first step reads the prompt. A part that other steps than ours lack, as on
    # a GPU, is in the rest.
    decoded = {p: times[-steps:] for p, times in spent.items() if len(times) >= steps}
    inner = [times for part, times in decoded.items() if part.startswith(" " * 4)]
    whole = zip(decoded[STEP], *inner, strict=True)
    decoded[REST] = [step - sum(parts) for step, *parts in whole]
    print(f"\nMedian milliseconds of {steps} decode steps")
    for part in filter(decoded.get, PARTS):
        print(f"{part:26}{statistics.median(decoded[part]) * 1e3:8.2f}")
        if models and part.strip() == "the model":
            alone = linear_layers(models[0])
            print(f"{'      linear layers alone':26}{alone * 1e3:8.2f}")


if __name__ == "__main__":
    main()
