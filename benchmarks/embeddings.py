"""Embeddings side by side on this CPU: max_mistral, llama.cpp, sentence-transformers.

    pip install --editable '.[bench]' torch==2.13.0 sentence-transformers
    python -m benchmarks.embeddings --shape 1.1B --encodings bf16 q4_k_m

Texts of random tokens, pooled at the last one and normalized, on the same seeded
random weights, two threads each on the same two CPUs; from token ids to vectors in
NumPy. The engines take turns, as in ``benchmarks/cpu.py``. sentence-transformers is
there where it is installed, in bfloat16, or in float32 where the CPU does not multiply
bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.engine import Stopped, work
from benchmarks.machine import cpu_name, take_two_cpus
from benchmarks.measure import Prompts, tokens
from benchmarks.report import MADE, Results, table
from benchmarks.rounds import rotated
from max_mistral.kernels import has_bfloat16
from workbench.record import origin, place, write

# By name: how many texts, and the tokens of each.
TEXTS = {
    "1 of 32": (1, 32),
    "32 of 32": (32, 32),
    "16 of 128": (16, 128),
    "4 of 512": (4, 512),
}
STEP = 2048
Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """What is measured."""

    def embed(self, texts: Prompts) -> Vectors:
        """Returns vectors of length 1, ``[texts, hidden_size]``."""


def max_mistral(folder: Path, gguf: Path | None) -> Embedder:
    """MAX's own embedding pipeline on this package's model."""
    from workbench.embedder import Embedder as Ours

    flags: dict[str, Any] = {"max_length": STEP, "max_batch_size": 32}
    flags |= {"max_batch_input_tokens": STEP, "kv_cache_format": None}
    return Ours(folder, flags | ({"weight_path": [gguf]} if gguf else {}))


class LlamaCpp:
    """llama.cpp through its own interface, all texts of a step in one batch."""

    def __init__(self, folder: Path, gguf: Path | None) -> None:
        import llama_cpp

        self.cpp = llama_cpp
        llama_cpp.llama_backend_init()
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        model = llama_cpp.llama_model_load_from_file(
            str(gguf).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = STEP
        settings.n_seq_max, settings.kv_unified = 32, True
        settings.n_threads = settings.n_threads_batch = 2
        settings.embeddings = True
        settings.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_LAST
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.batch = llama_cpp.llama_batch_init(STEP, 0, 1)
        self.width = llama_cpp.llama_model_n_embd(model)

    def embed(self, texts: Prompts) -> Vectors:
        """See :class:`Embedder`."""
        memory = self.cpp.llama_get_memory(self.context)
        self.cpp.llama_memory_clear(memory, False)
        rows = [(t, i, r) for r, text in enumerate(texts) for i, t in enumerate(text)]
        self.batch.n_tokens = len(rows)
        for i, (token, position, text) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, text
            self.batch.logits[i] = True
        status = self.cpp.llama_decode(self.context, self.batch)
        assert status == 0, status
        found = [
            np.ctypeslib.as_array(
                self.cpp.llama_get_embeddings_seq(self.context, text), (self.width,)
            )
            for text in range(len(texts))
        ]
        vectors = np.stack(found)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class SentenceTransformers:
    """A transformer, the last token's state, and a norm, as models of e5 have it."""

    def __init__(self, folder: Path, gguf: Path | None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        torch.set_num_threads(2)
        self.torch = torch
        # Without AVX512-BF16 torch is several times as slow in bfloat16.
        dtype = torch.bfloat16 if has_bfloat16() else torch.float32
        transformer = modules.Transformer(str(folder), model_kwargs={"dtype": dtype})
        width = transformer.get_embedding_dimension()
        parts = [transformer, modules.Pooling(width, "lasttoken"), modules.Normalize()]
        self.model = SentenceTransformer(modules=parts, device="cpu").eval()

    def embed(self, texts: Prompts) -> Vectors:
        """See :class:`Embedder`. All texts are of one length."""
        ids = self.torch.tensor(texts)
        mask = self.torch.ones_like(ids)
        with self.torch.inference_mode():
            found = self.model({"input_ids": ids, "attention_mask": mask})
        return found["sentence_embedding"].float().numpy()


ENGINES = {
    "max_mistral": max_mistral,
    "llama.cpp": LlamaCpp,
    "sentence-t.": SentenceTransformers,
}


def worker(name: str, folder: Path, gguf: Path | None) -> None:
    """A worker's process; see ``benchmarks/worker.py``."""
    start = time.perf_counter()
    engine = ENGINES[name](folder, gguf)
    first = engine.embed([tokens(16)])
    print(json.dumps({"loaded": time.perf_counter() - start}), flush=True)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-2)

    def rate(measure: str, count: int, length: int) -> float:
        texts = [tokens(length, seed) for seed in range(count)]
        start = time.perf_counter()
        engine.embed(texts)
        return count * length / (time.perf_counter() - start)

    work(rate)


def run(
    folder: Path, encoding: str, rounds: int, keep: Callable[[Results], None]
) -> Results:
    """Returns tokens a second by engine and texts, a round each.

    Args:
        folder: The model's.
        encoding: Of its weights.
        rounds: How many.
        keep: Is given what there is, after each round.
    """
    gguf = models.weights(folder, encoding)
    files = {"max_mistral": None if encoding == "bf16" else gguf, "llama.cpp": gguf}
    if encoding == "bf16" and find_spec("sentence_transformers") is not None:
        files["sentence-t."] = None
    here = [sys.executable, "-m", "benchmarks.embeddings", "--worker"]

    def start(name: str) -> Stopped:
        file = files[name]
        return Stopped(name, folder, file and file.resolve(), command=[*here, name])

    start("max_mistral").finish()  # compiles, where it has to
    workers = {name: start(name) for name in files}
    results: Results = {name: defaultdict(list) for name in files}
    try:
        for turn in range(rounds):
            for measure, numbers in TEXTS.items():
                runs = {
                    n: partial(w.rate, measure, *numbers) for n, w in workers.items()
                }
                for name, value in rotated(runs, turn):
                    results[name][measure].append(value)
            keep(results)
    finally:
        for worker in workers.values():
            worker.kill()
    return results


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, folder, *rest = sys.argv[2:]
        worker(name, Path(folder), Path(rest[0]) if rest else None)
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", default="1.1B", choices=models.SHAPES)
    parser.add_argument(
        "--encodings",
        nargs="+",
        choices=models.ENCODINGS,
        default=["bf16", "q8_0", "q4_k_m"],
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=place, help="where to write the results")
    arguments = parser.parse_args()
    made = origin("max", "llama-cpp-python", "sentence-transformers", "torch")
    made["cpus"] = take_two_cpus()
    report: dict[str, Any] = {"cpu": cpu_name(), MADE: made}
    model = models.make(arguments.shape, arguments.folder / arguments.shape)
    for encoding in arguments.encodings:

        def keep(results: Results) -> None:
            report[f"{arguments.shape} {encoding}"] = results
            write(arguments.json, report)

        results = run(model, encoding, arguments.rounds, keep)
        print(f"\n{arguments.shape} {encoding}, tokens/s of so many texts of so many")
        print(table(results, TEXTS), flush=True)


if __name__ == "__main__":
    main()
