"""One engine with prompt lookup and without, in a process; see ``lookup.py``.

    python -m benchmarks.lookup_worker ENGINE FOLDER GGUF

ENGINE is ``smollm2``, ``llama.cpp`` or ``1.1B``. A line of its input is a kind of
request, how many at a time, and a number that chooses which and which way comes
first; it prints tokens a second both ways. Of ``same COUNT 0`` it prints how many of
so many greedy answers are equal both ways.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from max.pipelines.sampling import FusedSamplingProcessor
from transformers import AutoTokenizer

from benchmarks.engine import work
from max_mistral.lookup.pipeline import LookupPipeline
from workbench.batch import Answers, Batch, Request
from workbench.demo import DEMO, GGUF
from workbench.lookup_texts import COUNT, KINDS, functions, texts

LENGTH = 160
"""Most tokens of an answer."""
FLAGS: dict[str, Any] = {"max_length": 2048, "max_batch_size": COUNT}
FLAGS["kv_cache_format"] = None  # as users have it
Asked = dict[str, list[Request]]
Rates = dict[str, float]


def ask(tokenizer: Any, question: str) -> list[int]:
    """Returns the tokens of a chat with one question."""
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )


def of_smollm2(tokenizer: Any) -> Asked:
    """Returns the requests of each kind."""
    return {
        kind: [Request(ask(tokenizer, text.prompt), LENGTH) for text in texts(kind)]
        for kind in KINDS
    }


def chosen(requests: Sequence[Request], count: int, turn: int) -> list[Request]:
    """Returns ``count`` of the requests, others at each turn."""
    return [requests[(turn * count + i) % COUNT] for i in range(count)]


def ways(turn: int) -> tuple[bool, bool]:
    """Returns both ways, without lookup and with it, in an order that alternates."""
    return (False, True) if turn % 2 else (True, False)


class Ours:
    """This package's steps, in MAX's pipeline."""

    def __init__(self, batch: Batch, asked: Asked, tokenizer: Any) -> None:
        self.batch, self.asked, self.tokenizer = batch, asked, tokenizer
        self.seen: set[str] = set()

    def answer(self, kind: str, count: int, turn: int) -> Rates | int:
        """Returns what a line of the input asks for."""
        if kind == "same":
            return self.same(count)
        if kind not in self.seen:
            self.seen.add(kind)
            # Learns what a step costs.
            self.batch.answer(self.asked[kind], lookup=True)
        requests = chosen(self.asked[kind], count, turn)
        found: dict[bool, Answers] = {}
        for lookup in ways(turn):
            found[lookup] = self.batch.answer(requests, lookup=lookup)
        assert found[True].tokens == found[False].tokens
        return {
            "without": found[False].rate,
            "with": found[True].rate,
            "drafted": found[True].drafted,
            "right": found[True].right,
        }

    def same(self, count: int) -> int:
        """Returns how many of so many greedy answers are equal both ways."""
        orders = ("Write this function again:", "What does this function do?")
        requests = [
            Request(
                ask(self.tokenizer, f"{orders[i % 2]}\n\n```python\n{source}```"), 64
            )
            for i, source in enumerate(functions(count))
        ]
        equal = 0
        for at in range(0, count, COUNT):
            part = requests[at : at + COUNT]
            plain, found = (self.batch.answer(part, lookup=on) for on in (False, True))
            equal += sum(map(list.__eq__, plain.tokens, found.tokens))
        return equal


def smollm2(tokenizer: Any, folder: Path, gguf: Path) -> Ours:
    """SmolLM2's own answers."""
    batch = Batch(folder, weight_path=[gguf], **FLAGS)
    return Ours(batch, of_smollm2(tokenizer), tokenizer)


class LlamaCpp:
    """llama.cpp with its prompt lookup and without, one request at a time."""

    def __init__(self, tokenizer: Any, folder: Path, gguf: Path) -> None:
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        flags: Any = {"n_ctx": 2048, "n_threads": 2, "n_threads_batch": 2}
        flags["verbose"] = False
        # 2 tokens are what it recommends for a CPU.
        drafts = LlamaPromptLookupDecoding(num_pred_tokens=2)
        self.asked = of_smollm2(tokenizer)
        self.engines = {
            False: llama_cpp.Llama(str(gguf), **flags),
            # Its lookup needs all logits.
            True: llama_cpp.Llama(
                str(gguf), draft_model=drafts, logits_all=True, **flags
            ),
        }

    def answer(self, kind: str, count: int, turn: int) -> Rates:
        """Returns what a line of the input asks for."""
        assert count == 1, count
        (request,) = chosen(self.asked[kind], count, turn)
        found = {way: self.rate(self.engines[way], request) for way in ways(turn)}
        return {"without": found[False], "with": found[True]}

    def rate(self, engine: Any, request: Request) -> float:
        """Returns the tokens a second of an answer, but for its first token."""
        engine.reset()
        times = []
        for token in engine.generate(list(request.tokens), temp=0.0):
            times.append(time.perf_counter())
            if len(times) == LENGTH or token == engine.token_eos():
                break
        return (len(times) - 1) / (times[-1] - times[0])


class Played(Batch):
    """A model whose every token is replaced by that of a text written before."""

    def __init__(self, folder: Path, known: list[np.ndarray], **flags: Any) -> None:
        super().__init__(folder, **flags)

        def replaced(rows: Any, tokens: np.ndarray) -> np.ndarray:
            played = tokens.copy()
            for i, context in enumerate(rows):
                text = context.tokens.all
                size = len(text)
                for whole in known:
                    # By its last token first, which takes a tenth of the time.
                    begun = size < len(whole) and whole[size - 1] == text[-1]
                    if begun and (whole[:size] == text).all():
                        played[i] = whole[size]
            return played

        # A prompt's token comes from MAX's own step, the others from ours.
        first, later = FusedSamplingProcessor.__call__, LookupPipeline._sample

        def played_first(processor: FusedSamplingProcessor, inputs: Any) -> None:
            first(processor, inputs)
            found = processor.generated_tokens.to_numpy()
            found[:, -1] = replaced(inputs.context_batch, found[:, -1])

        def played_later(pipeline: Any, rows: Any, *more: Any) -> np.ndarray:
            return replaced(rows, later(pipeline, rows, *more))

        FusedSamplingProcessor.__call__ = played_first  # type: ignore
        LookupPipeline._sample = played_later  # type: ignore


def played(tokenizer: Any, folder: Path, gguf: Path) -> Ours:
    """A model of 1.1B, with answers played; for the chat those of SmolLM2."""
    real = smollm2(tokenizer, DEMO, GGUF)
    chats = real.batch.answer(real.asked["chat"], lookup=True).tokens
    del real
    vocabulary: dict[int, int] = {}
    asked: Asked = {}
    known = []
    for kind in KINDS:
        asked[kind] = []
        for text, chat in zip(texts(kind), chats, strict=True):
            prompt = ask(tokenizer, text.prompt)
            answer = tokenizer.encode(text.answer) if text.answer else list(chat)
            answer = answer[:LENGTH]
            # SmolLM2's tokens in a vocabulary of the size of this model's.
            ids = [vocabulary.setdefault(t, 300 + len(vocabulary)) for t in prompt]
            ids += [vocabulary.setdefault(t, 300 + len(vocabulary)) for t in answer]
            known.append(np.array(ids))
            sampling = {"top_k": 1, "ignore_eos": True}
            asked[kind].append(Request(ids[: len(prompt)], len(answer), sampling))
    return Ours(Played(folder, known, weight_path=[gguf], **FLAGS), asked, tokenizer)


ENGINES: dict[str, Callable[[Any, Path, Path], Ours | LlamaCpp]] = {
    "smollm2": smollm2,
    "llama.cpp": LlamaCpp,
    "1.1B": played,
}


def main() -> None:
    name, *paths = sys.argv[1:]
    start = time.perf_counter()
    engine = ENGINES[name](AutoTokenizer.from_pretrained(DEMO), *map(Path, paths))
    print(json.dumps({"loaded": time.perf_counter() - start}), flush=True)
    work(engine.answer)


if __name__ == "__main__":
    main()
