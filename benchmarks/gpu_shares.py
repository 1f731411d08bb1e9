"""What share of a GPU ``benchmarks/gpu.py``'s rates are, and all of it in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import matmul
from benchmarks.gpu_engines import DECODES
from benchmarks.measure import PREFILL


def shares(
    rates: Mapping[str, float], ceilings: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Returns what each measure takes of the GPU's ``"memory"`` speed and ``"peak"``.

    Args:
        rates: Tokens a second.
        ceilings: As :func:`benchmarks.matmul_ceilings.ceilings` returns them; without
            them there are no shares.
    """
    if "bytes/s" not in ceilings:
        return {}
    config = matmul.read(matmul.CONFIG)
    found = {}
    for name, (batch, before, steps) in {"prefill": (1, PREFILL, 0), **DECODES}.items():
        tokens = PREFILL if name == "prefill" else batch
        sizes = (tokens, batch, before + steps // 2)
        found[name] = share(config, *sizes, tokens / rates[name], ceilings)
    return found


def share(
    config: Mapping[str, Any],
    tokens: int,
    requests: int,
    before: int,
    seconds: float,
    ceilings: Mapping[str, float],
) -> dict[str, float]:
    """Returns what a step takes of the GPU's ``"memory"`` speed and of its ``"peak"``.

    Args:
        config: The model's, of Mistral in bfloat16.
        tokens: Of all requests.
        requests: How many.
        before: Tokens of each whose keys and values are read, or written.
        seconds: How long the step takes.
        ceilings: What the GPU reaches.
    """
    head, *layer = matmul.products({**config})
    layers = config["num_hidden_layers"]
    in_head = head.columns * head.terms
    in_layers = layers * sum(p.columns * p.terms for p in layer)
    width = config.get("head_dim")
    width = width or config["hidden_size"] // config["num_attention_heads"]
    # Keys and values of a token, in bfloat16.
    kv = 2 * 2 * layers * config["num_key_value_heads"] * width
    moved = 2 * (in_layers + in_head) + kv * requests * before
    # The head computes a request's last token only.
    computed = 2 * (in_layers * tokens + in_head * requests)
    return {
        "memory": moved / seconds / ceilings["bytes/s"],
        "peak": computed / seconds / ceilings["operations/s"],
    }


def shares_text(rates: Mapping[str, float], ceilings: Mapping[str, Any]) -> str:
    """Returns a line for each measure, or why there is none (``"failed"``)."""
    if "bytes/s" not in ceilings:
        return (
            "No shares of the GPU, for what it reaches was not measured: "
            f"{ceilings['failed']}"
        )
    return "\n".join(
        f"{name:12}{share['memory']:6.0%} of memory{share['peak']:6.0%} of peak"
        for name, share in shares(rates, ceilings).items()
    )


def answer(
    rates: Mapping[str, float], ceilings: Mapping[str, Any], taken: int | None
) -> str:
    """Returns all in a line: rates, the share that limits each, and memory.

    Args:
        rates: Tokens a second.
        ceilings: See :func:`shares`.
        taken: Bytes of the GPU's memory, if they are known.
    """
    of_gpu = shares(rates, ceilings)
    parts = []
    for name, value in rates.items():
        what, _, batch = name.partition("_")
        share = ""
        if name in of_gpu:
            limit = max(of_gpu[name], key=of_gpu[name].__getitem__)
            share = f" ({of_gpu[name][limit]:.0%} of {limit})"
        at = f" at batch {batch}" if batch else ""
        parts.append(f"{what} {value:,.0f} tokens/s{at}{share}")
    if taken is not None:
        parts.append(f"{taken / 1e9:.1f} GB")
    return ", ".join(parts)
