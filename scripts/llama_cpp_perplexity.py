"""Write llama.cpp's likelihood of a book into tests/fixtures/books.

    python -m scripts.llama_cpp_perplexity MODEL_FOLDER FILE.gguf

MODEL_FOLDER is what ``max_mistral.prepare`` made of FILE.gguf. Needs
llama-cpp-python, which ``pip install '.[bench]'`` brings.
"""

import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from transformers import AutoTokenizer

from workbench.perplexity import GOLDEN, WINDOW, mean_nll, windows


def main() -> None:
    folder, gguf = map(Path, sys.argv[1:])
    model = llama_cpp.Llama(
        str(gguf), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False
    )
    found = []
    for tokens in windows(AutoTokenizer.from_pretrained(folder)):
        model.reset()
        model.eval(tokens)
        found.append(mean_nll(np.array(model.scores[: len(tokens)]), tokens))
    report = {
        "llama-cpp-python": llama_cpp.__version__,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "mean_nll": found,
    }
    GOLDEN.write_text(json.dumps(report, indent=1) + "\n")
    print(f"perplexity {np.exp(np.mean(found)):.3f}")


if __name__ == "__main__":
    main()
