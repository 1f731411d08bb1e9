"""Compile the graph for GPUs, on a machine that need not have one.

    python scripts/check_gpu_compile.py             # every case
    python scripts/check_gpu_compile.py bfloat16    # or those named

compiles tiny models with ``max warm-cache``, for an H100 or, where the case says
so, a B200 or an MI355X. Two to three minutes a case the first time, of which MAX keeps
what it compiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from max_mistral.command.program import max_program
from workbench.checkpoints import BASE, CONFIGS, write_checkpoint
from workbench.quantized import CONFIG, LAYOUTS, write_quantized

# Heads of 128, as the published models have.
DENSE = BASE | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 128,
    "num_hidden_layers": 2,
}


def like(name: str) -> dict[str, Any]:
    """The dense model, changed as a config of the parity tests is."""
    changed = {k: v for k, v in CONFIGS[name].items() if BASE.get(k) != v}
    heads = ("num_key_value_heads", "num_hidden_layers", "hidden_size", "head_dim")
    kept = {k: v for k, v in changed.items() if k not in heads}
    if "layer_types" in kept:
        kept["layer_types"] = kept["layer_types"][:2]
    return DENSE | kept


@dataclass(frozen=True)
class Case:
    """What is compiled.

    Args:
        flags: For ``max warm-cache``.
        config: The dense model's.
        dtype: Its weights'.
        layout: Of :data:`LAYOUTS`, if the model is quantized.
        devices: How many GPUs.
        target: Which.
        keep: Whether FP8 weights stay so where MAX has no fast products of them.
        multistage: Whether products are MAX's multistage GEMM's.
    """

    flags: Sequence[str] = ()
    config: dict[str, Any] = field(default_factory=lambda: DENSE)
    dtype: str = "bfloat16"
    layout: str | None = None
    devices: int = 1
    target: str = "cuda:sm_90a"
    keep: bool = False
    multistage: bool = False

    def write(self, folder: Path) -> None:
        """Writes the checkpoint into ``folder``."""
        if self.layout is None:
            write_checkpoint(folder, self.config, dtype=self.dtype)
        else:
            # Two devices have whole blocks of 128.
            config = CONFIG | {"intermediate_size": 512}
            write_quantized(folder, LAYOUTS[self.layout], config)

    @property
    def encoding(self) -> str:
        """Its ``--quantization-encoding``."""
        return self.dtype if self.layout is None else LAYOUTS[self.layout].encoding

    def command(self, folder: Path) -> list[str]:
        """Returns the command that compiles it."""
        devices = ",".join(str(i) for i in range(self.devices))
        return [
            max_program() or "max",
            "warm-cache",
            *("--custom-architectures", "max_mistral"),
            *("--model", str(folder)),
            *("--quantization-encoding", self.encoding),
            *("--devices", f"gpu:{devices}"),
            *("--target", self.target),
            *("--max-length", "512"),
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        """Returns what the command is to find in its environment."""
        return {
            "MAX_MISTRAL_FP8": "keep" if self.keep else "bfloat16",
            "MAX_MISTRAL_MATMUL": "multistage" if self.multistage else "max",
        }


@dataclass(frozen=True)
class Products:
    """The products of the self-check, at a 7B model's shapes.

    Args:
        target: Which GPU.
        matmul: ``multistage``, ``fp8``, ``small`` or ``two-gpus`` for kernels of ours,
            ``vendor`` for cuBLAS, not MAX's own choice.
    """

    target: str
    matmul: str | None = None

    def write(self, folder: Path) -> None:
        """Writes nothing."""

    def command(self, folder: Path) -> list[str]:
        """Returns the command that compiles them."""
        command = [sys.executable, "-m", "workbench.compile_products", self.target]
        return [*command, self.matmul] if self.matmul else command

    def environment(self) -> dict[str, str]:
        """Returns what the command is to find in its environment."""
        return {"PYTHONPATH": str(Path(__file__).parent.parent)}


# A window that the longest text outgrows. The name says the task.
EMBEDS = DENSE | {"architectures": ["MistralModel"], "sliding_window": 128}
REPLICAS = ("--data-parallel-degree", "2")
CASES: dict[str, Case | Products] = {
    "bfloat16": Case(),
    "tensor-parallel": Case(devices=2),
    "float32": Case(dtype="float32"),
    "copied-kv-heads": Case(config=DENSE | {"tie_word_embeddings": True}, devices=4),
    "replicas": Case(REPLICAS, devices=2),
    "tensor-parallel-replicas": Case(REPLICAS, devices=4),
    "windows-on-some-layers": Case(config=like("ministral")),
    "scaled-queries": Case(config=like("ministral3")),
    "embeddings": Case(config=EMBEDS),
    "embeddings-tensor-parallel": Case(config=EMBEDS, devices=2),
    "fp8-kv-cache": Case(("--kv-cache-format", "float8_e4m3fn"), target="cuda:sm_100a"),
    # Log-probabilities need the scheduler without overlap.
    "echo-and-structured-output": Case(
        (
            "--enable-echo",
            "--enable-structured-output",
            "--no-enable-overlap-scheduler",
            "--no-device-graph-capture",
        )
    ),
    "fp8-in-bfloat16": Case(layout="block"),
    "fp8-static": Case(layout="static", keep=True),
    "fp8-static-tensor-parallel": Case(layout="static", devices=2, keep=True),
    "fp8-dynamic": Case(layout="autofp8_dynamic", keep=True),
    "fp8-channel": Case(layout="channel", keep=True),
    "fp8-block": Case(layout="block", keep=True),
    "fp8-modelopt": Case(layout="modelopt_fp8", keep=True),
    # Where MAX's own matmuls with one scale per tensor or per row compile.
    "fp8-static-blackwell": Case(layout="static", target="cuda:sm_100a"),
    "fp8-channel-blackwell": Case(layout="channel", target="cuda:sm_100a"),
    "fp8-block-blackwell": Case(layout="block", target="cuda:sm_100a"),
    # Where FP8 has no tensor cores that MAX knows.
    "fp8-static-ada": Case(layout="static", target="cuda:sm_89", keep=True),
    "fp8-channel-ampere": Case(layout="channel", target="cuda:sm_80", keep=True),
    "fp8-block-ada": Case(layout="block", target="cuda:sm_89", keep=True),
    "nvfp4": Case(layout="nvfp4", target="cuda:sm_100a"),
    "nvfp4-tensor-parallel": Case(
        layout="modelopt_nvfp4", devices=2, target="cuda:sm_100a"
    ),
    "gptq": Case(layout="gptq"),
    "gptq-desc-act": Case(layout="gptq_desc_act"),
    # Not gfx942: for that MAX 26.7 cannot compile its attention (head_dim 128).
    "amd": Case(target="hip:gfx950"),
    # Where MAX's own matmul is wrong.
    "multistage": Case(multistage=True),
    "multistage-tensor-parallel": Case(devices=2, multistage=True),
    "multistage-beside-fp8-block": Case(layout="block", keep=True, multistage=True),
    "products": Products("cuda:sm_90a"),
    "products-blackwell": Products("cuda:sm_100a"),
    "products-vendor": Products("cuda:sm_90a", "vendor"),
    "products-two-gpus": Products("cuda:sm_90a", "two-gpus"),
    "products-multistage": Products("cuda:sm_90a", "multistage"),
    "products-multistage-blackwell": Products("cuda:sm_100a", "multistage"),
    # Where a block of threads has less shared memory.
    "products-multistage-ada": Products("cuda:sm_89", "multistage"),
    "products-small": Products("cuda:sm_90a", "small"),
    "products-fp8": Products("cuda:sm_90a", "fp8"),
    "products-fp8-rtx-blackwell": Products("cuda:sm_120a", "fp8"),
    "products-amd": Products("hip:gfx950"),
}


def compiles(name: str) -> bool:
    """Compiles a case and returns whether that worked; prints why it did not."""
    with tempfile.TemporaryDirectory() as folder:
        CASES[name].write(Path(folder))
        done = subprocess.run(
            CASES[name].command(Path(folder)),
            # MAX's engine, once imported, exports a PYTHONEXECUTABLE that
            # sends a child Python to the wrong installation.
            env=dict(os.environ) | CASES[name].environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    names = parser.parse_args().cases or list(CASES)
    if unknown := set(names) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    failed = []
    for name in names:
        start = time.perf_counter()
        print(f"{name} ({CASES[name].target}) ...", end=" ", flush=True)
        ok = compiles(name)
        print(f"{'ok' if ok else 'FAILED'}, {time.perf_counter() - start:.0f} s")
        if not ok:
            failed.append(name)
    if failed:
        sys.exit(f"Did not compile: {', '.join(failed)}.")
    print(f"Compiled {len(names)} of {len(CASES)} cases.")


if __name__ == "__main__":
    main()
