"""What the models ought to compute: Hugging Face transformers on torch.

The committed goldens are made here, from the seeded checkpoints:

    pip install torch==2.13.0
    python -m tests.reference

A plain forward over the whole sequence at each step: no cache, no padding
mask, so nothing of HF's generation code is in the way.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.checkpoints import CONFIGS, write_checkpoint

GOLDENS = Path(__file__).parent / "fixtures" / "goldens"
PROMPT_LENGTHS = (1, 7, 33)
DECODE_STEPS = 20


def prompts(vocab_size: int) -> list[list[int]]:
    """Returns one random prompt for each of :data:`PROMPT_LENGTHS`."""
    rng = np.random.default_rng(1)
    return [
        [int(t) for t in rng.integers(3, vocab_size, length)]
        for length in PROMPT_LENGTHS
    ]


@dataclass
class Reference:
    """Prompts, their greedy continuations, and every logit on the way."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    """Prompt and continuation of each row."""
    logits: list[npt.NDArray[np.float32]]
    """Of each row, ``[prompt + DECODE_STEPS, vocab_size]``."""

    def save(self, path: Path) -> None:
        """Writes the rows end to end; the prompt lengths cut them again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            tokens=np.concatenate(self.tokens).astype(np.int32),
            logits=np.concatenate(self.logits).astype(np.float32),
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Reads what :meth:`save` wrote."""
        with np.load(path) as file:
            ends = np.cumsum([n + DECODE_STEPS for n in PROMPT_LENGTHS])[:-1]
            tokens = [row.tolist() for row in np.split(file["tokens"], ends)]
            logits = np.split(file["logits"], ends)
        return cls(
            [row[:n] for row, n in zip(tokens, PROMPT_LENGTHS, strict=True)],
            tokens,
            logits,
        )


def compute(folder: Path) -> Reference:
    """Runs the checkpoint in ``folder`` through transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = prompts(model.config.vocab_size)
    tokens, logits = [], []
    with torch.inference_mode():
        for row in rows:
            sequence = list(row)
            for _ in range(DECODE_STEPS):
                out = model(torch.tensor([sequence]), use_cache=False).logits[0]
                sequence.append(int(out[-1].argmax()))
            out = model(torch.tensor([sequence]), use_cache=False).logits[0]
            tokens.append(sequence)
            logits.append(out.numpy())
    return Reference(rows, tokens, logits)


def main() -> None:
    """Makes the goldens anew."""
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), config)
            compute(Path(folder)).save(GOLDENS / f"{name}.npz")


if __name__ == "__main__":
    main()
