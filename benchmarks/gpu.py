"""Side by side on this GPU: max_mistral, MAX's own Mistral, transformers on torch.

    make check-gpu                       # or, to choose:
    python -m benchmarks.gpu --rounds 3

Mistral-7B-v0.3's config and the same seeded random bfloat16 weights for all.
Every round runs every engine once, in rotated order, each in a process of its
own; the table has the medians in tokens a second, and the median of the rounds'
ratios to MAX's own Mistral. Each engine's model alone is measured, without a
scheduler and without captured device graphs, which max_mistral has in ``max
serve`` and MAX's own Mistral has not. transformers is there where torch with
CUDA is. Takes 15 GB of disk and 24 GB of the GPU's memory.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.cpu import in_process, run_round
from benchmarks.measure import PREFILL, Engine, measure
from benchmarks.report import Results, table
from benchmarks.worker import MaxMistral, Torch
from workbench.demo import ROOT

CONFIG = ROOT / "tests/fixtures/configs/mistralai/Mistral-7B-Instruct-v0.3/config.json"
# Requests at a time, tokens of each before, steps timed. Together the tokens
# are fewer than the 8,192 that MAX takes in one step by default.
DECODES = {f"decode_{batch}": (batch, 100, 64) for batch in (1, 8, 64)}
BASE = "MAX"
# For weights, KV cache and a step's activations; MAX would take all that is free.
GPU_BYTES = 24e9
CUDA = "import torch; print(torch.cuda.is_available())"
NO_CUDA = "transformers is left out: there is no torch with CUDA here."
# An exit status, as pytest's where there is nothing to do.
NOTHING = 5


class OnGpu(MaxMistral):
    """A model of MAX's in bfloat16, ours or the built-in one."""

    def __init__(self, folder: Path, name: str) -> None:
        from max.driver import Accelerator, DeviceSpec
        from max.nn.transformer import ReturnLogits
        from max.pipelines.architectures.mistral import mistral_arch as built_in

        from max_mistral.arch import mistral_arch as ours
        from workbench.runner import Runner

        total = Accelerator().stats["total_memory"]
        flags = {
            "device_memory_utilization": min(0.9, GPU_BYTES / total),
            "custom_architectures": ["max_mistral"] if name != BASE else [],
            "device_specs": [DeviceSpec.accelerator()],
            "quantization_encoding": "bfloat16",
            "max_length": PREFILL + 128,
            "max_batch_size": max(batch for batch, _, _ in DECODES.values()),
        }
        arch = built_in if name == BASE else ours
        self.runner = Runner(folder, ReturnLogits.LAST_TOKEN, flags, arch)
        self.running = self.runner.claim([[1]])

    def choose(self, logits: Any) -> Iterable[int]:
        """See :class:`MaxMistral`; here the step's end, and any token.

        ``max serve`` chooses on the GPU: copying the logits of 64 requests to
        the host, 8 MB, would take a good part of the time that is measured.
        """
        logits.device.synchronize()
        return [1] * logits.shape[0]


def run(name: str, folder: Path) -> None:
    """Measures one engine and prints JSON."""
    engine: Engine
    if name == "transformers":
        if ask(CUDA) != "True":
            print(NO_CUDA)
            sys.exit(NOTHING)
        engine = Torch(folder, None, "cuda")
    else:
        engine = OnGpu(folder, name)
    print(json.dumps(measure(engine, DECODES, prefills=10)))


def ask(code: str) -> str:
    """Returns what Python code prints, ``""`` where it fails.

    In a process of its own, for MAX takes most of the GPU's memory at once.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode else done.stdout.strip()


def main() -> None:
    """The command line; with two words, an engine's process."""
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        run(sys.argv[1], Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench/gpu"))
    parser.add_argument("--make", action="store_true", help="the weights, no more")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    # MAX's own Mistral fails without head_dim, which the published config lacks.
    values = json.loads(CONFIG.read_text()) | {"head_dim": 128}
    if arguments.make:
        models.make_safetensors(values, arguments.folder)
        return
    gpu = ask("from max.driver import Accelerator; print(Accelerator().model_name)")
    if not gpu:
        sys.exit("benchmarks.gpu needs a GPU, and MAX finds none here.")
    names = ["max_mistral", BASE]
    if ask(CUDA) == "True":
        names.append("transformers")
    else:
        print(NO_CUDA)
    folder = models.make_safetensors(values, arguments.folder)
    runs = {
        name: functools.partial(in_process, name, folder, module="benchmarks.gpu")
        for name in names
    }
    results: Results = {}
    for turn in range(arguments.rounds):
        run_round(turn, runs, results)
    results = {name: results[name] for name in names}
    print(f"\nMistral 7B in bfloat16 on {gpu}, tokens/s and ratio to MAX's own")
    print(table(results, ["prefill", *DECODES], BASE))
    if arguments.json:
        report = {
            "gpu": gpu,
            "date": time.strftime("%Y-%m-%d"),
            "max": importlib.metadata.version("max"),
            "tokens_per_second": results,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
