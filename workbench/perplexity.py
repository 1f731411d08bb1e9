"""The text on which SmolLM2's perplexity is taken, and how it is summed up."""

from pathlib import Path
from typing import Any

import numpy as np

BOOKS = Path(__file__).parent.parent / "tests" / "fixtures" / "books"
GOLDEN = BOOKS / "perplexity.json"
WINDOW, WINDOWS = 1024, 4


def windows(tokenizer: Any) -> list[list[int]]:
    """Returns the book's first tokens, ``WINDOWS`` times ``WINDOW``."""
    text = (BOOKS / "absence_of_mr_glass.txt").read_text()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) >= WINDOW * WINDOWS
    return [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)]


def mean_nll(logits: np.ndarray, tokens: list[int]) -> float:
    """Returns a window's mean negative log-likelihood, its first token left out.

    Args:
        logits: ``[len(tokens), vocab_size]``.
        tokens: The window.
    """
    rows = np.asarray(logits[:-1], np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(rows)), tokens[1:]]
    return float((np.log(np.exp(rows).sum(axis=1)) - chosen).mean())
