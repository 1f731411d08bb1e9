"""Where a token's time goes in ``max generate``.

    python -m benchmarks.timeline --model FOLDER --devices cpu ...

Runs ``max generate`` with these arguments in this process, with clocks around
its parts, and prints the milliseconds that each takes of a decode step.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

from max._entrypoints.pipelines import main as max_main
from max.pipelines.lib.generate import GenerateIterator
from max.pipelines.lib.pipeline_variants import text_generation

from max_mistral import MistralModel

PIPELINE = text_generation.TextGenerationPipeline
# What is timed; what is indented is part of what stands above it.
PARTS = {
    "a token": None,
    "  a step of the pipeline": (GenerateIterator, "step"),
    "    KV cache and inputs": (PIPELINE, "prepare_batch"),
    "    the model": (MistralModel, "execute"),
    "    sampler": (text_generation, "apply_logits_processors"),
}


def main() -> None:
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, attribute: str, part: str) -> None:
        function = getattr(owner, attribute)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
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
    print(f"\nMedian milliseconds of {len(ends) - 1} decode steps")
    for part in PARTS:
        # The first step reads the prompt.
        decoded = spent[part][1 - len(ends) :]
        print(f"{part:26}{statistics.median(decoded) * 1e3:8.2f}")


if __name__ == "__main__":
    main()
