"""The questions that ``scripts/check_gpu.py`` asks a GPU.

Imports nothing of this package: a step that fails to import it says so itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable

CONFIGS = ["gqa", "mha_tied", "window", "ministral", "ministral3", "head_dim_128"]
LAYOUTS = ["static", "native", "block", "autofp8", "autofp8_dynamic", "channel"]
LAYOUTS += ["compressed_block", "compressed_static", "nvfp4", "modelopt_nvfp4"]
LAYOUTS += ["modelopt_fp8", "gptq", "gptq_desc_act"]
FP8_LAYOUTS = [n for n in LAYOUTS if "nvfp4" not in n and "gptq" not in n]
ENGINES = ["max_mistral", "MAX", "transformers", "vLLM"]


@dataclass(frozen=True)
class Step:
    """One question, and the command that answers it by its exit status."""

    name: str
    question: str
    command: list[str]
    dry: list[str] | None = None
    """What stands for it where there is no GPU; by default itself, on a CPU."""
    needs: str = ""
    """What it needs that a dry run may lack, and is left out for."""
    environment: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    """Whether it measures time, or takes most of the GPU's memory."""


def steps(out: Path) -> Iterator[Step]:
    """Yields the steps, what others depend on first.

    Args:
        out: Where models and figures go.
    """
    pytest = [PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    matmul = [*pytest, "tests/gpu/test_matmul.py"]
    yield Step(
        "doctor", "What is here?", [PYTHON, "-m", "max_mistral.command", "doctor"]
    )
    yield Step(
        "matmul-own", "Is MAX's own bfloat16 matmul right, for 1 to 8,192 rows?", matmul
    )
    yield Step(
        "matmul-cublas",
        "Is cuBLAS's?",
        matmul,
        needs="a GPU's BLAS",
        environment={"MAX_MISTRAL_VENDOR_BLAS": "1"},
    )
    yield Step(
        "matmul-multistage",
        "Is MAX's multistage GEMM?",
        matmul,
        needs="an NVIDIA GPU",
        environment={"MAX_MISTRAL_MATMUL": "multistage"},
    )
    yield Step(
        "matmuls",
        "What does the self-check say of each, and how fast are they?",
        [PYTHON, "-m", "benchmarks.matmul", "--json", str(out / "matmuls.json")],
        alone=True,
    )
    for name in CONFIGS:
        yield Step(
            f"parity-{name}",
            f"Are the logits of {name} those of Hugging Face, in float32 and bfloat16?",
            [*pytest, "tests/gpu/test_parity.py", "-k", f"[{name}] or [{name}-"],
        )
    for name in LAYOUTS:
        yield Step(
            f"quantized-{name}",
            f"Are a block's products right in {name}?",
            [*pytest, "tests/gpu/test_quantized.py", "-k", f"[{name}]"],
            needs="" if name in FP8_LAYOUTS else f"a GPU, for {name} runs on no CPU",
        )
    for name in FP8_LAYOUTS:
        yield Step(
            f"quantized-{name}-kept",
            f"And kept in FP8, in {name}, whatever that costs?",
            [*pytest, "tests/gpu/test_quantized.py", "-k", f"[{name}]"],
            environment={"MAX_MISTRAL_FP8": "keep"},
            needs="a GPU, for a CPU has no products in FP8",
        )
    yield Step(
        "serve",
        "Does max serve answer?",
        [*pytest, "tests/gpu/test_serve.py"],
        alone=True,
    )
    gpu = [PYTHON, "-m", "benchmarks.gpu"]
    weights = ["--folder", str(out / "model")]
    yield Step(
        "weights",
        "Are the benchmark's weights there?",
        [*gpu, *weights, "--make"],
    )
    for name in ENGINES:
        yield Step(
            f"speed-{name}",
            f"How fast is {name}'s model alone, in tokens a second?",
            [*gpu, name, str(out / "model"), str(out / "matmuls.json")],
            alone=True,
            needs="" if name.lower().startswith("max") else f"{name}, installed",
        )
    serving = [PYTHON, "-m", "benchmarks.serving", "--json", str(out / "serving.json")]
    demo = ["--model", "build/smollm2", "--users", "1", "2", "--rounds", "1"]
    demo += ["--answer-tokens", "8", "--prompt-tokens", "16", "--", "--devices", "cpu"]
    # MAX's own that runs on a CPU; "weights" writes it.
    tiny = ["--model", str(out / "model-float32"), *demo[2:]]
    gguf = str(ROOT / "build/SmolLM2-135M-Instruct.Q4_1.gguf")
    yield Step(
        "serving",
        "What do 1, 8 and 64 users of max serve get?",
        [*serving, "--model", str(out / "model"), "--", "--devices", "gpu:0"],
        dry=[*serving, *demo, "--weight-path", gguf],
        alone=True,
    )
    theirs = [*serving[:-1], str(out / "serving-max.json"), "--built-in"]
    yield Step(
        "serving-max",
        "And with MAX's own Mistral?",
        [*theirs, "--model", str(out / "model"), "--", "--devices", "gpu:0"],
        dry=[*theirs, *tiny, "--quantization-encoding", "float32"],
        alone=True,
    )
