"""Prompt lookup on this CPU: tokens a second with it and without.

    python -m benchmarks.lookup
    python -m benchmarks.lookup --models smollm2 --same 200

Three kinds of request: a function written again with a name changed, an answer
with sentences of a document, an open chat; 1, 2, 4 and 8 at a time. Each round
answers the same requests both ways, in turns; the table has the median of the
rounds' ratios, and how many drafted tokens were right.

- ``smollm2``: SmolLM2-135M-Instruct's own answers, greedy, beside llama.cpp's
  prompt lookup, which takes one request.
- ``1.1B``: TinyLlama's shape with random weights in Q4_K_M. Its tokens are
  replaced by those of the answers in ``workbench/lookup_texts.py``, and for the
  chat by what SmolLM2 said: the work of a good model.

``--same`` counts greedy answers that are equal with lookup and without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from max.pipelines.sampling import FusedSamplingProcessor
from transformers import AutoTokenizer

from benchmarks import models
from benchmarks.cpu import cpu_name
from max_mistral.lookup.pipeline import LookupPipeline
from workbench.batch import Answers, Batch, Request
from workbench.demo import GGUF, prepare_demo
from workbench.lookup_texts import COUNT, KINDS, functions, texts

AT_A_TIME = (1, 2, 4, 8)
LENGTH = 160
"""Most tokens of an answer."""
FLAGS: dict[str, Any] = {"max_length": 2048, "max_batch_size": COUNT}
FLAGS["kv_cache_format"] = None  # as users have it
Asked = dict[str, list[Request]]


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


class Played(Batch):
    """A model whose every token is replaced by that of a text written before."""

    def __init__(self, folder: Path, known: list[np.ndarray], **flags: Any) -> None:
        super().__init__(folder, **flags)

        def replaced(rows: Any, tokens: np.ndarray) -> np.ndarray:
            played = tokens.copy()
            for i, context in enumerate(rows):
                text = context.tokens.all
                for whole in known:
                    if len(text) < len(whole) and (whole[: len(text)] == text).all():
                        played[i] = whole[len(text)]
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


def play(tokenizer: Any, chats: Sequence[Sequence[int]], folder: Path) -> Any:
    """Returns a model of 1.1B and what it is asked, with its answers played."""
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
    gguf = models.quantize(models.make("1.1B", folder), "q4_k_m")
    return Played(folder, known, weight_path=[gguf.resolve()], **FLAGS), asked


def compare(batch: Batch, requests: list[Request], count: int, rounds: int) -> Any:
    """Returns the figures of ``count`` requests at a time."""
    ratios, rates, drafted, right = [], [], 0, 0
    for turn in range(rounds):
        chosen = [requests[(turn * count + i) % COUNT] for i in range(count)]
        found: dict[bool, Answers] = {}
        for lookup in (False, True) if turn % 2 else (True, False):
            found[lookup] = batch.answer(chosen, lookup=lookup)
        assert found[True].tokens == found[False].tokens
        rates.append((found[False].rate, found[True].rate))
        ratios.append(found[True].rate / found[False].rate)
        drafted += found[True].drafted
        right += found[True].right
    without, with_ = (statistics.median(column) for column in zip(*rates, strict=True))
    return {
        "without": without,
        "with": with_,
        "ratio": statistics.median(ratios),
        "drafted": drafted,
        "right": right,
    }


def table(name: str, batch: Batch, asked: Asked, rounds: int) -> dict[str, Any]:
    """Prints and returns the figures of a model."""
    print(f"\n{name}: tokens a second")
    print(
        f"{'':10}{'requests':>9}{'without':>9}{'with':>9}{'ratio':>7}   right/drafted"
    )
    result: dict[str, Any] = {}
    for kind, requests in asked.items():
        batch.answer(requests, lookup=True)  # learns what a step costs
        for count in AT_A_TIME:
            found = compare(batch, requests, count, rounds)
            result.setdefault(kind, {})[count] = found
            print(
                f"{kind:10}{count:9}{found['without']:9.1f}{found['with']:9.1f}"
                f"{found['ratio']:7.2f}   {found['right']}/{found['drafted']}",
                flush=True,
            )
    return result


def llama_cpp(asked: Asked) -> dict[str, Any]:
    """Returns llama.cpp's rates with its prompt lookup and without, by kind."""
    questions = {k: [list(r.tokens) for r in v] for k, v in asked.items()}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lookup", "--llama-cpp"],
        input=json.dumps(questions),
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"llama.cpp failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def llama_cpp_worker() -> None:
    """Answers what comes on the input by llama.cpp; prints its rates."""
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    flags: Any = {"n_ctx": 2048, "n_threads": 2, "n_threads_batch": 2, "verbose": False}
    # 2 tokens are what it recommends for a CPU.
    drafts = LlamaPromptLookupDecoding(num_pred_tokens=2)
    engines = {
        "without": llama_cpp.Llama(str(GGUF), **flags),
        # Its lookup needs all logits.
        "with": llama_cpp.Llama(
            str(GGUF), draft_model=drafts, logits_all=True, **flags
        ),
    }
    result = {}
    for kind, prompts in json.load(sys.stdin).items():
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for prompt in prompts:
            for name, engine in engines.items():
                engine.reset()
                times = []
                for token in engine.generate(prompt, temp=0.0):
                    times.append(time.perf_counter())
                    if len(times) == LENGTH or token == engine.token_eos():
                        break
                rates[name].append((len(times) - 1) / (times[-1] - times[0]))
        pairs = zip(rates["with"], rates["without"], strict=True)
        result[kind] = {name: statistics.median(r) for name, r in rates.items()}
        result[kind]["ratio"] = statistics.median(a / b for a, b in pairs)
    print(json.dumps(result))


def same(batch: Batch, tokenizer: Any, count: int) -> int:
    """Returns how many of so many greedy answers are equal both ways."""
    orders = ("Write this function again:", "What does this function do?")
    requests = [
        Request(ask(tokenizer, f"{orders[i % 2]}\n\n```python\n{source}```"), 64)
        for i, source in enumerate(functions(count))
    ]
    equal = 0
    for at in range(0, count, COUNT):
        part = requests[at : at + COUNT]
        plain, found = (batch.answer(part, lookup=on) for on in (False, True))
        equal += sum(map(list.__eq__, plain.tokens, found.tokens))
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ("smollm2", "1.1B")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--same", type=int, default=0, metavar="COUNT")
    parser.add_argument("--no-llama-cpp", action="store_true")
    parser.add_argument("--build", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--llama-cpp", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.llama_cpp:
        llama_cpp_worker()
        return
    demo = prepare_demo()
    tokenizer = AutoTokenizer.from_pretrained(demo)
    batch = Batch(demo, weight_path=[GGUF], **FLAGS)
    asked = of_smollm2(tokenizer)
    result: dict[str, Any] = {"machine": cpu_name()}

    def keep(name: str, found: Any) -> None:
        """Writes at once: a later part may be cut off."""
        result[name] = found
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")

    if "smollm2" in arguments.models:
        keep("smollm2", table("SmolLM2-135M", batch, asked, arguments.rounds))
        if not arguments.no_llama_cpp:
            keep("llama.cpp", llama_cpp(asked))
            print("\nllama.cpp, one request")
            for kind, found in result["llama.cpp"].items():
                print(
                    f"{kind:19}{found['without']:9.1f}{found['with']:9.1f}"
                    f"{found['ratio']:7.2f}"
                )
    if arguments.same:
        equal = same(batch, tokenizer, arguments.same)
        keep("same", [equal, arguments.same])
        print(
            f"\nequal with lookup and without: {equal} of {arguments.same}", flush=True
        )
    if "1.1B" in arguments.models:
        chats = batch.answer(asked["chat"], lookup=True).tokens
        del batch
        played, asked = play(tokenizer, chats, arguments.build / "1.1B")
        keep("1.1B", table("1.1B, played", played, asked, arguments.rounds))


if __name__ == "__main__":
    main()
