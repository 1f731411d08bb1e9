"""What a benchmark prints of what it measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

MEASURES = (
    *("prefill", "prefill_deep", "decode", "decode_deep", "decode_batch"),
    "end_to_end",
)
Results = dict[str, dict[str, list[float]]]
"""By engine and measure, a rate a round."""
MADE = "made"
"""Where a row has what ``workbench.record.origin`` says of it."""


def table(
    results: Results, measures: Iterable[str] = MEASURES, base: str = "llama.cpp"
) -> str:
    """Returns medians, and in brackets the ratio to the engine ``base``'s.

    The memory is the peak over the weights and the KV cache that the engine
    reserves: max_mistral for 8 requests of 4,224 tokens, the others for one.
    """
    head = f"{'':18}" + "".join(f"{name:>16}" for name in measures)
    lines = [head + "  peak GB" * any("peak_bytes" in m for m in results.values())]
    for engine, measured in results.items():
        cells = []
        for name in measures:
            if name not in measured:
                cells.append(f"{'':>16}")
                continue
            cell = f"{statistics.median(measured[name]):.1f}"
            if name in results.get(base, {}):  # which may have failed
                cell += f" ({ratios(results, engine, name, base):.2f}x)"
            cells.append(f"{cell:>16}")
        if "peak_bytes" in measured:
            peak = measured["peak_bytes"][0]
            over = peak / measured["needed_bytes"][0]
            cells.append(f"{peak / 1e9:9.1f} ({over:.2f}x weights and KV)")
        lines.append(f"{engine:18}" + "".join(cells))
    return "\n".join(lines)


def ratios(results: Results, engine: str, name: str, base: str = "llama.cpp") -> float:
    """Returns the median of an engine's ratios to ``base``'s, round by round."""
    pairs = zip(results[engine][name], results[base][name], strict=True)
    return statistics.median(value / other for value, other in pairs)
