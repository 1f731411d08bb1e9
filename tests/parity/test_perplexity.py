"""SmolLM2's perplexity of a book, from the demo's GGUF, against llama.cpp's."""

import hashlib
import json

import numpy as np
from max.nn.transformer import ReturnLogits
from transformers import AutoTokenizer

from workbench.demo import GGUF
from workbench.perplexity import GOLDEN, WINDOW, mean_nll, windows
from workbench.runner import Runner


def test_it_is_within_half_a_percent_of_llama_cpps(demo_model):
    golden = json.loads(GOLDEN.read_text())
    assert hashlib.sha256(GGUF.read_bytes()).hexdigest() == golden["sha256"]
    # Both round activations to int8, each in its own way, so it cannot be equal.
    flags = {"max_length": WINDOW + 1, "max_batch_size": 1, "weight_path": [GGUF]}
    runner = Runner(demo_model, ReturnLogits.ALL, flags)
    found = []
    for tokens in windows(AutoTokenizer.from_pretrained(demo_model)):
        _, (logits,) = runner.generate([tokens], 1)
        found.append(mean_nll(logits, tokens))
    ratio = np.exp(np.mean(found) - np.mean(golden["mean_nll"]))
    assert abs(ratio - 1) < 0.005, (ratio, found, golden)
