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

from workbench.checkpoints import CONFIGS, write_checkpoint

GOLDENS = Path(__file__).parent / "fixtures" / "goldens"
# Of the checkpoint "window".
EMBEDDINGS = GOLDENS / "embeddings.npy"


@dataclass(frozen=True)
class Case:
    """How a config is tried."""

    prompt_lengths: tuple[int, ...] = (1, 7, 33)
    steps: int = 20
    stride: int = 1
    """The golden keeps every so many rows of logits, to stay small."""

    @property
    def max_length(self) -> int:
        """Room for prompt and steps: one of two, to compile few graphs."""
        return 256 if max(self.prompt_lengths) + self.steps <= 256 else 640


# Prompts beyond the window, then two windows of decode.
WINDOWED = Case(prompt_lengths=(5, 300), steps=264, stride=11)
CASES = {name: Case() for name in CONFIGS} | {
    "window": WINDOWED,
    "ministral": WINDOWED,
    "head_dim_128": WINDOWED,
}


def prompts(case: Case, vocab_size: int) -> list[list[int]]:
    """Returns one random prompt of each length."""
    rng = np.random.default_rng(1)
    return [
        [int(t) for t in rng.integers(3, vocab_size, length)]
        for length in case.prompt_lengths
    ]


@dataclass
class Reference:
    """Prompts, their greedy continuations, and logits on the way."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    """Prompt and continuation of each row."""
    logits: list[npt.NDArray[np.float32]]
    """Of each row's tokens ``[0::stride]``, ``[rows, vocab_size]``."""

    def save(self, path: Path) -> None:
        """Writes the rows end to end; the case's lengths cut them again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            tokens=np.concatenate(self.tokens).astype(np.int32),
            logits=np.concatenate(self.logits).astype(np.float32),
        )

    @classmethod
    def load(cls, name: str) -> Reference:
        """Reads the golden that :meth:`save` wrote for a config."""
        case = CASES[name]
        lengths = [n + case.steps for n in case.prompt_lengths]
        kept = [len(range(0, length, case.stride)) for length in lengths]
        with np.load(GOLDENS / f"{name}.npz") as file:
            split = np.split(file["tokens"], np.cumsum(lengths)[:-1])
            logits = np.split(file["logits"], np.cumsum(kept)[:-1])
        tokens = [row.tolist() for row in split]
        return cls(
            [row[:n] for row, n in zip(tokens, case.prompt_lengths, strict=True)],
            tokens,
            logits,
        )


def compute(folder: Path, case: Case) -> Reference:
    """Runs the checkpoint in ``folder`` through transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = prompts(case, model.config.vocab_size)
    tokens, logits = [], []
    with torch.inference_mode():
        for row in rows:
            sequence = list(row)
            for _ in range(case.steps):
                out = model(torch.tensor([sequence]), use_cache=False).logits[0]
                sequence.append(int(out[-1].argmax()))
            out = model(torch.tensor([sequence]), use_cache=False).logits[0]
            tokens.append(sequence)
            logits.append(out.numpy()[:: case.stride])
    return Reference(rows, tokens, logits)


def score(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Returns the logits of given tokens, ``[tokens, vocab_size]``."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


# Of one token, within a page of the cache, at the end of one, beyond the window.
TEXTS = Case(prompt_lengths=(1, 7, 300, 640, 128, 2), steps=0)


def embed(folder: Path, rows: list[list[int]]) -> npt.NDArray[np.float32]:
    """Returns the last hidden state of each row, normalized, ``[rows, hidden]``.

    Row by row: no batch, so no padding.
    """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        states = [
            model(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]
            for row in rows
        ]
        return torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()


def main() -> None:
    """Makes the goldens anew."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(Path(name), CONFIGS["window"])
        texts = prompts(TEXTS, CONFIGS["window"]["vocab_size"])
        np.save(EMBEDDINGS, embed(folder, texts))
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), config)
            compute(Path(folder), CASES[name]).save(GOLDENS / f"{name}.npz")


if __name__ == "__main__":
    main()
