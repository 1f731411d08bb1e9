"""SmolLM2's perplexity of a book, from the demo's GGUF, against llama.cpp's."""

import json
from pathlib import Path

import numpy as np
from max.nn.transformer import ReturnLogits
from transformers import AutoTokenizer

from tests.harness import Runner
from tests.perplexity import GOLDEN, WINDOW, mean_nll, windows

BUILD = Path(__file__).parent.parent.parent / "build"


def test_it_is_within_half_a_percent_of_llama_cpps():
    # Both round activations to int8, each in its own way, so it cannot be equal.
    folder, file = BUILD / "smollm2", BUILD / "SmolLM2-135M-Instruct.Q4_1.gguf"
    flags = {"max_length": WINDOW + 1, "max_batch_size": 1, "weight_path": [file]}
    runner = Runner(folder, ReturnLogits.ALL, flags)
    found = []
    for tokens in windows(AutoTokenizer.from_pretrained(folder)):
        _, (logits,) = runner.generate([tokens], 1)
        found.append(mean_nll(logits, tokens))
    golden = json.loads(GOLDEN.read_text())["mean_nll"]
    ratio = np.exp(np.mean(found) - np.mean(golden))
    assert abs(ratio - 1) < 0.005, (ratio, found, golden)
