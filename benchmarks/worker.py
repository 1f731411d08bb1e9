"""One engine on one model, in a process of its own.

    python -m benchmarks.worker ENGINE FOLDER [GGUF]

ENGINE is ``max_mistral``, ``llama.cpp`` or ``torch``, on two threads, greedy.
Prints ``{"loaded": seconds}``, and for each measure of ``benchmarks/measure.py`` that
begins a line of its input ``{measure: tokens a second}``: the model alone. ``steps`` is
the rate of three more steps of one request, which the next ``steps`` goes on with. At
the end of its input, or at ``end``, the peak of its resident memory, beside what
weights and KV cache take. The engine ``llama.cpp-user`` measures decode as
llama-cpp-python's user gets it. With ``KV_BITS=8`` in its environment max_mistral and
llama.cpp keep keys and values in 8 bits.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    BATCH,
    DEPTH,
    PREFILL,
    Engine,
    Prompts,
    median_rate,
    rate,
    tokens,
)

CONTEXT = DEPTH + 128
VOCAB = 32000
FEW = 3  # steps at a time
IN_8_BITS = os.environ.get("KV_BITS") == "8"


def kv_bytes(folder: Path) -> int:
    """Returns what the keys and values of ``CONTEXT`` tokens take in 16 bits."""
    values = json.loads((folder / "config.json").read_text())
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    width = values["num_key_value_heads"] * head_dim
    return 2 * 2 * values["num_hidden_layers"] * width * CONTEXT


class MaxMistral:
    """``MistralModel`` with a KV cache for 8 requests of 4,224 tokens."""

    def __init__(self, folder: Path, gguf: Path | None) -> None:
        from max import tree
        from max.nn.kv_cache import KVCacheInputsPerDevice
        from max.nn.transformer import ReturnLogits

        from workbench.runner import Runner

        flags: dict[str, Any] = {"max_length": CONTEXT, "max_batch_size": BATCH}
        flags["kv_cache_format"] = "float8_e4m3fn" if IN_8_BITS else None
        if gguf is not None:
            flags["weight_path"] = [gguf]
        self.runner = Runner(folder, ReturnLogits.LAST_TOKEN, flags)
        self.running = self.runner.claim([[1]])
        inputs = self.runner.kv_inputs(self.running)
        (cache,) = tree.leaves(inputs, leaf=KVCacheInputsPerDevice)
        blocks = cache.kv_blocks
        self.kv_bytes = blocks.num_elements * blocks.dtype.size_in_bytes

    def start(self, prompts: Prompts) -> Callable[[], object]:
        """See :class:`Engine`."""
        self.runner.release(self.running)
        self.running = contexts = self.runner.claim(prompts)
        (first, *others) = contexts

        def step() -> None:
            if others:
                outputs = self.runner.step(contexts)
            else:
                # A long prompt in steps of as many tokens as llama.cpp's.
                *_, outputs = self.runner.in_chunks(first, PREFILL)
            chosen = self.choose(outputs.next_token_logits)
            for context, token in zip(contexts, chosen, strict=True):
                self.runner.advance(context, int(token))

        return step

    def choose(self, logits: Any) -> Iterable[int]:
        """Returns each request's next token, from a buffer ``[batch, VOCAB]``."""
        return logits.to_numpy().argmax(axis=-1)


class LlamaCpp:
    """llama.cpp through its own interface, ``llama_decode``."""

    def __init__(self, folder: Path, gguf: Path | None) -> None:
        import llama_cpp

        self.cpp = llama_cpp
        llama_cpp.llama_backend_init()
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        self.model = llama_cpp.llama_model_load_from_file(
            str(gguf).encode(), llama_cpp.llama_model_default_params()
        )
        self.batch = llama_cpp.llama_batch_init(PREFILL, 0, 1)
        self.context = None
        self.kv_bytes = kv_bytes(folder)
        if IN_8_BITS:  # 34 bytes for 32 numbers
            self.kv_bytes = self.kv_bytes * 34 // 64

    def decode(self, rows: list[tuple[int, int, int]]) -> None:
        """Computes (token, position, request)s, and all their logits' last."""
        last = {request: i for i, (_, _, request) in enumerate(rows)}
        for at in range(0, len(rows), PREFILL):
            part = rows[at : at + PREFILL]
            self.batch.n_tokens = len(part)
            for i, (token, position, request) in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, position
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, request
                self.batch.logits[i] = last[request] == at + i
            status = self.cpp.llama_decode(self.context, self.batch)
            assert status == 0, status
        self.rows = [last[request] - at for request in sorted(last)]

    def start(self, prompts: Prompts) -> Callable[[], object]:
        """See :class:`Engine`."""
        if self.context is not None:
            self.cpp.llama_free(self.context)
        settings = self.cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT if len(prompts) == 1 else 128 * len(prompts)
        settings.n_batch = settings.n_ubatch = PREFILL
        settings.n_seq_max = len(prompts)
        settings.n_threads = settings.n_threads_batch = 2
        if IN_8_BITS:
            settings.type_k = settings.type_v = self.cpp.GGML_TYPE_Q8_0
            settings.flash_attn_type = self.cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = self.cpp.llama_init_from_model(self.model, settings)
        todo = [(t, i, r) for r, p in enumerate(prompts) for i, t in enumerate(p)]
        lengths = [len(prompt) for prompt in prompts]

        def step() -> None:
            self.decode(todo)
            todo.clear()
            for request, row in enumerate(self.rows):
                logits = self.cpp.llama_get_logits_ith(self.context, row)
                values = np.ctypeslib.as_array(logits, shape=(VOCAB,))
                todo.append((int(values.argmax()), lengths[request], request))
                lengths[request] += 1

        return step


class Torch:
    """Hugging Face transformers, in the checkpoint's bfloat16."""

    def __init__(self, folder: Path, gguf: Path | None, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        self.torch, self.device = torch, device
        self.kv_bytes = kv_bytes(folder)
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16)
        self.model.to(device).eval()

    def start(self, prompts: Prompts) -> Callable[[], object]:
        """See :class:`Engine`."""
        cache, todo = None, prompts

        def step() -> None:
            nonlocal cache, todo
            rows = self.torch.tensor(todo, device=self.device)
            out = self.model(rows, past_key_values=cache, logits_to_keep=1)
            cache = out.past_key_values
            todo = out.logits[:, -1].argmax(-1, keepdim=True).tolist()

        return step


def llama_cpp_user(gguf: Path) -> dict[str, float]:
    """The rate of what llama-cpp-python's user runs, from a prompt of 500 tokens.

    ``Llama.generate`` and the text of each token, as ``create_completion`` does.
    """
    import llama_cpp

    llama = llama_cpp.Llama(
        str(gguf), n_ctx=1024, n_threads=2, n_threads_batch=2, verbose=False
    )
    times = []
    for token in llama.generate(tokens(500), temp=0.0):
        llama.detokenize([token])
        times.append(time.perf_counter())
        if len(times) == 100:
            break
    return {"end_to_end": (len(times) - 1) / (times[-1] - times[0])}


ENGINES: dict[str, Callable[..., Engine]] = {
    "max_mistral": MaxMistral,
    "llama.cpp": LlamaCpp,
    "torch": Torch,
}


def main() -> None:
    name, folder, *rest = sys.argv[1:]
    gguf = Path(rest[0]) if rest else None
    if name == "llama.cpp-user":
        assert gguf is not None
        print(json.dumps(llama_cpp_user(gguf)))
        return
    if name == "max_mistral":
        # MAX imports torch where it is installed. A user's environment has none.
        sys.modules["torch"] = None  # type: ignore[assignment]
    start = time.perf_counter()
    engine = ENGINES[name](Path(folder), gguf)
    print(json.dumps({"loaded": time.perf_counter() - start}), flush=True)
    step: Callable[[], object] | None = None
    for line in sys.stdin:
        measure, *_ = line.split()
        if measure == "end":
            break
        if measure == "steps":
            if step is None:
                step = engine.start([tokens(16)])
                step()
            found = median_rate(step, FEW, 1)
        else:
            found, step = rate(engine, measure), None
        print(json.dumps({measure: found}), flush=True)
    weights = gguf or Path(folder) / "model.safetensors"
    result = {"weight_bytes": weights.stat().st_size}
    result["needed_bytes"] = result["weight_bytes"] + engine.kv_bytes
    # Not getrusage's ru_maxrss, which begins with that of the parent process.
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert peak
        result["peak_bytes"] = int(peak[1]) * 1024
    print(json.dumps({"end": result}))


if __name__ == "__main__":
    main()
