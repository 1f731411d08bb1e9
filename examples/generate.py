"""Generate text in Python, a batch of prompts at a time.

    python examples/generate.py MODEL "Who wrote Hamlet?" "What is two plus two?"

MODEL is a folder or a Hub id. Each prompt goes through the model's chat
template, if it has one.
"""

import argparse
from pathlib import Path

from max.driver import DeviceSpec
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.lib import PipelineArgs, PipelineConfig
from max.pipelines.lib.generate import generate


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer prompts, as one batch.")
    parser.add_argument("model")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--max-new-tokens", type=int, default=40)
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
            max_batch_size=len(args.prompts),
        )
    )
    retrieved = PIPELINE_REGISTRY.retrieve_factory(config)
    pipeline = retrieved.factory()
    tokenizer = retrieved.tokenizer.delegate

    prompts = [encode(tokenizer, prompt) for prompt in args.prompts]
    result = generate(
        pipeline, prompts, max_new_tokens=args.max_new_tokens, temperature=0
    )
    for prompt, sequence in zip(prompts, result.sequences, strict=True):
        print(tokenizer.decode(sequence[len(prompt) :], skip_special_tokens=True))


def encode(tokenizer, prompt: str) -> list[int]:
    """Returns the token ids of one user turn."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(prompt)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
    )
    return tokenizer.encode(text, add_special_tokens=False)


if __name__ == "__main__":
    main()
