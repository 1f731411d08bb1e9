"""This tree beside an older one: did a change make the model slower?

    git worktree add build/old COMMIT
    python -m benchmarks.versions build/old build/bench/1.1B
    python -m benchmarks.versions build/old build/bench/1.1B model.gguf

Both trees' models are loaded side by side and take turns of a few seconds, the
other one stopped. Prints each measure's medians, and the median and the spread
of the rounds' ratios of new to old. The older tree must have ``benchmarks``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.engine import Stopped
from benchmarks.measure import DECODES, PREFILLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("old", type=Path, help="a checkout of the older version")
    parser.add_argument("model", type=Path, help="a folder, as benchmarks.cpu makes it")
    parser.add_argument("gguf", type=Path, nargs="?", help="its weights, if not there")
    parser.add_argument("--rounds", type=int, default=3)
    every = [*PREFILLS, *DECODES]
    parser.add_argument("--measures", nargs="+", choices=every, default=every)
    arguments = parser.parse_args()
    here = Path(__file__).parent.parent
    gguf = arguments.gguf and arguments.gguf.resolve()
    trees = {"old": arguments.old.resolve(), "new": here}

    def start(tree: Path) -> Stopped:
        found = {"PYTHONPATH": str(tree)}
        model = arguments.model.resolve()
        return Stopped("max_mistral", model, gguf, found, cwd=tree)

    for tree in trees.values():
        start(tree).finish()  # compiles, where it has to
    workers = {name: start(tree) for name, tree in trees.items()}
    try:
        print(f"{'':14}{'old':>10}{'new':>10}{'ratio':>8}   of the rounds")
        for measure in arguments.measures:
            rates: dict[str, list[float]] = {"old": [], "new": []}
            for turn in range(arguments.rounds):
                for name in ("old", "new") if turn % 2 else ("new", "old"):
                    rates[name].append(workers[name].rate(measure))
            ratios = [n / o for o, n in zip(rates["old"], rates["new"], strict=True)]
            old, new = (statistics.median(found) for found in rates.values())
            print(
                f"{measure:14}{old:10.1f}{new:10.1f}{statistics.median(ratios):8.3f}"
                f"   {min(ratios):.3f} to {max(ratios):.3f}",
                flush=True,
            )
    finally:
        for worker in workers.values():
            worker.kill()


if __name__ == "__main__":
    main()
