"""Run the model yourself, step by step, and see what it would say next.

    python examples/logits.py MODEL "The capital of France is"

MODEL is a folder or a Hub id. Nothing of MAX's pipelines or scheduler is used:
this constructs the model and its KV cache, prefills the prompt, decodes a few
tokens greedily, and prints the likeliest tokens of each step.
"""

import argparse
from pathlib import Path

import numpy as np
from max.driver import Buffer, DeviceSpec, load_devices
from max.engine import InferenceSession
from max.graph.weights import load_weights
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import load_kv_manager
from max.pipelines.lib import PipelineArgs, PipelineConfig
from transformers import AutoTokenizer

from max_mistral import MistralModel


def main() -> None:
    parser = argparse.ArgumentParser(description="Print next-token probabilities.")
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument(
        "--weight-path", type=Path, nargs="*", default=[], help="a GGUF file, say"
    )
    args = parser.parse_args()

    config = PipelineConfig.from_args(
        PipelineArgs.from_flat_kwargs(
            model_path=args.model,
            # Absolute, and no link followed: MAX looks at the suffix.
            weight_path=[path.absolute() for path in args.weight_path],
            custom_architectures=["max_mistral"],
            device_specs=[DeviceSpec.cpu()],
            quantization_encoding="float32",
            max_length=args.max_length,
            max_batch_size=1,
        )
    )
    devices = load_devices(config.model.device_specs)
    session = InferenceSession(devices=devices)
    model = MistralModel(
        config,
        session,
        devices,
        config.model.kv_cache,
        load_weights(config.model.resolved_weight_paths()),
    )
    kv_manager = load_kv_manager(
        params=model.kv_params,
        max_batch_size=1,
        max_seq_len=model.max_seq_len,
        session=session,
        available_cache_memory=model.memory_plan.available_cache_memory,
        is_di_enabled=False,
        model_name=args.model,
        max_num_input_tokens=None,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    context = TextContext(
        max_length=model.max_seq_len,
        tokens=TokenBuffer(np.array(tokenizer.encode(args.prompt), dtype=np.int64)),
    )
    kv_manager.claim(context)
    kv_manager.alloc(context)
    inputs = model.prepare_initial_token_inputs(
        [[context]], kv_cache_inputs=kv_manager.runtime_inputs([[context]])
    )
    for step in range(args.steps):
        logits = model.execute(inputs).logits.to_numpy()[0]
        chosen = print_top(tokenizer, logits, step, args.top)
        # The context learns the token, the cache makes room for it (and lets go
        # of what a window left behind), and both go into the next step's inputs.
        context.update(chosen)
        kv_manager.step(context)
        kv_manager.alloc(context)
        inputs = model.prepare_next_token_inputs(
            Buffer.from_numpy(np.array([chosen], dtype=np.int64)), inputs
        )
        inputs.kv_cache_inputs = kv_manager.runtime_inputs([[context]])
    print(tokenizer.decode(context.tokens.all))


def print_top(tokenizer, logits: np.ndarray, step: int, top: int) -> int:
    """Prints the likeliest tokens and returns the first."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities)[:top]
    parts = [f"{tokenizer.decode([t])!r} {probabilities[t]:.3f}" for t in best]
    print(f"step {step}: " + "  ".join(parts))
    return int(best[0])


if __name__ == "__main__":
    main()
