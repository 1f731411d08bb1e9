"""One engine on one model, in a process of its own; prints JSON.

    python -m benchmarks.worker ENGINE FOLDER [GGUF]

ENGINE is ``max_mistral``, ``llama.cpp`` or ``torch``. Each measures the model
alone, greedily: prefill of 512 tokens, decode after 16 tokens and after 4,096,
and decode of 8 requests at a time, in tokens a second; and the peak of its
resident memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PREFILL, DEPTH, STEPS, DEEP_STEPS, BATCH = 512, 4096, 48, 16, 8
CONTEXT = DEPTH + 128
VOCAB = 32000


def tokens(count: int, seed: int = 0) -> list[int]:
    """Returns random tokens of the model's vocabulary."""
    return [int(t) for t in np.random.default_rng(seed).integers(300, 31999, count)]


def median_rate(step: Callable[[], object], count: int, per_step: int = 1) -> float:
    """Returns tokens a second over the median of ``count`` steps."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return per_step / statistics.median(times)


def measure_max_mistral(folder: Path, gguf: Path | None) -> dict[str, float]:
    from max.nn.transformer import ReturnLogits

    from tests.harness import Runner

    flags = {"max_length": CONTEXT, "max_batch_size": BATCH}
    if gguf is not None:
        flags["weight_path"] = [gguf]
    start = time.perf_counter()
    runner = Runner(folder, ReturnLogits.LAST_TOKEN, flags)
    load = time.perf_counter() - start
    model = runner.model

    def run(contexts):
        inputs = model.prepare_initial_token_inputs(
            [contexts], kv_cache_inputs=runner.kv_inputs(contexts)
        )
        logits = model.execute(inputs).next_token_logits.to_numpy()
        for context, row in zip(contexts, logits, strict=True):
            context.update(int(row.argmax()))

    result = {"load_seconds": load}
    rates = []
    for seed in range(3):
        contexts = runner.claim([tokens(PREFILL, seed)])
        rates.append(median_rate(lambda: run(contexts), 1, PREFILL))
        runner.release(contexts)
    result["prefill"] = statistics.median(rates)
    for name, prompts, steps in (
        ("decode", [tokens(16)], STEPS),
        ("decode_batch", [tokens(16, i) for i in range(BATCH)], STEPS),
        ("decode_deep", [tokens(DEPTH)], DEEP_STEPS),
    ):
        contexts = runner.claim(prompts)
        run(contexts)
        result[name] = median_rate(lambda: run(contexts), steps, len(prompts))
        runner.release(contexts)
    return result


def measure_llama_cpp(folder: Path, gguf: Path | None) -> dict[str, float]:
    import llama_cpp

    start = time.perf_counter()
    model = llama_cpp.Llama(
        str(gguf),
        n_ctx=CONTEXT,
        n_batch=PREFILL,
        n_ubatch=PREFILL,
        n_threads=2,
        n_threads_batch=2,
        verbose=False,
    )
    result = {"load_seconds": time.perf_counter() - start}

    def chosen() -> int:
        logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(VOCAB,)).argmax())

    rates = []
    for seed in range(3):
        model.reset()
        prompt = tokens(PREFILL, seed)
        rates.append(median_rate(lambda: model.eval(prompt), 1, PREFILL))
    result["prefill"] = statistics.median(rates)
    for name, length, steps in (
        ("decode", 16, STEPS),
        ("decode_deep", DEPTH, DEEP_STEPS),
    ):
        model.reset()
        model.eval(tokens(length))
        result[name] = median_rate(lambda: model.eval([chosen()]), steps)
    result["decode_batch"] = _llama_cpp_batch(gguf)
    return result


def _llama_cpp_batch(gguf: Path | None) -> float:
    """Decodes 8 sequences in one batch, through llama.cpp's own interface."""
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 128 * BATCH, 512, 512
    settings.n_seq_max = BATCH
    settings.n_threads = settings.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(512, 0, BATCH)

    def decode(rows: list[tuple[int, int, int]]) -> None:
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = 1
        status = llama_cpp.llama_decode(context, batch)
        assert status == 0, status

    decode([(t, p, s) for s in range(BATCH) for p, t in enumerate(tokens(16, s))])
    position = iter(range(16, 128))

    def step() -> None:
        at = next(position)
        last = batch.n_tokens // BATCH
        chosen = []
        for sequence in range(BATCH):
            row = sequence * last + last - 1
            logits = llama_cpp.llama_get_logits_ith(context, row)
            values = np.ctypeslib.as_array(logits, shape=(VOCAB,))
            chosen.append((int(values.argmax()), at, sequence))
        decode(chosen)

    rate = median_rate(step, STEPS, BATCH)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return rate


def measure_torch(folder: Path, gguf: Path | None) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    result = {"load_seconds": time.perf_counter() - start}
    state = {}

    def run(ids):
        out = model(
            torch.tensor(ids), past_key_values=state.get("cache"), logits_to_keep=1
        )
        state["cache"] = out.past_key_values
        state["next"] = out.logits[:, -1].argmax(-1, keepdim=True).tolist()

    with torch.inference_mode():
        rates = []
        for seed in range(3):
            state.clear()
            rates.append(median_rate(lambda: run([tokens(PREFILL, seed)]), 1, PREFILL))
        result["prefill"] = statistics.median(rates)
        for name, prompts, steps in (
            ("decode", [tokens(16)], STEPS),
            ("decode_batch", [tokens(16, i) for i in range(BATCH)], STEPS),
            ("decode_deep", [tokens(DEPTH)], DEEP_STEPS),
        ):
            state.clear()
            run(prompts)
            result[name] = median_rate(lambda: run(state["next"]), steps, len(prompts))
    return result


ENGINES = {
    "max_mistral": measure_max_mistral,
    "llama.cpp": measure_llama_cpp,
    "torch": measure_torch,
}


def main() -> None:
    engine, folder, *rest = sys.argv[1:]
    result = ENGINES[engine](Path(folder), Path(rest[0]) if rest else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak_bytes": peak}))


if __name__ == "__main__":
    main()
