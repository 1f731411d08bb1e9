"""The questions that ``scripts/check_gpu.py`` asks a GPU.

Imports nothing of this package: a step that fails to import it says so itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
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
MATMULS = ["own", "cublas", "multistage", "fp8"]
# Large files stay there, whatever folder the report goes to.
WEIGHTS = ROOT / "build" / "gpu" / "model"
# That of benchmarks/gpu_engines.py, so that the model need not be compiled again.
MAX_LENGTH = "640"
# What is asked first, for time may be short: whether anything runs, which matmuls are
# right, and how fast the model is. Steps that run at a time come before those that run
# alone. What follows is known by other means, too.
FIRST = ["doctor", "weights", "parity-gqa", *(f"check-{name}" for name in MATMULS)]
FIRST += ["ceilings", "speed-max_mistral", "speed-MAX", "serving", "serving-max"]
FIRST += [*(f"time-{name}" for name in MATMULS), "speed-transformers", "speed-vLLM"]
FIRST += ["serving-vllm"]


@dataclass(frozen=True)
class Step:
    """One question, and the command that answers it by its exit status."""

    name: str
    question: str
    command: list[str]
    dry: list[str] | None = None
    """What stands for it where there is no GPU; by default itself, on a CPU."""
    lacks: str = ""
    """What a dry run may not have here, and is left out for."""
    environment: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    """Whether it measures time, or takes most of the GPU's memory."""
    figures: Path | None = None
    """The JSON that it writes, which goes into the report."""
    needs: int = 60
    """Seconds without which it would be begun in vain: a model is compiled in more."""
    share: int = 4
    """Percent of the GPU's memory, where several run at a time. Models are tiny."""


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Returns the steps as they are asked: those in ``FIRST``, then the others."""
    places = {name: at for at, name in enumerate(FIRST)}
    return sorted(steps, key=lambda step: places.get(step.name, len(FIRST)))


def steps(out: Path, *, dry: bool = False) -> Iterator[Step]:
    """Yields the steps, what others depend on first.

    Args:
        out: Where figures go, in JSON.
        dry: Whether they are run on a CPU, of a tiny model with files of its own.
    """
    model = out.parent / "model" if dry else WEIGHTS
    ceilings = out / "ceilings.json"
    # With "-v" it names a test before it runs it, which tells where a step hung.
    pytest = [PYTHON, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider"]
    matmul = [*pytest, "tests/gpu/test_matmul.py"]
    yield Step(
        "doctor",
        "Does the doctor say what is here? (It is below.)",
        [PYTHON, "-m", "max_mistral.command", "doctor"],
        needs=20,
    )
    matmuls: dict[str, tuple[str, str, dict[str, str]]] = {
        "own": ("Is MAX's own bfloat16 matmul right", "", {}),
        "cublas": ("Is cuBLAS's", "a GPU's BLAS", {"MAX_MISTRAL_VENDOR_BLAS": "1"}),
        "multistage": (
            "Is MAX's multistage GEMM",
            "an NVIDIA GPU",
            {"MAX_MISTRAL_MATMUL": "multistage"},
        ),
    }
    cases = {
        "": ("7b-nemo", ", for 1 to 8,192 rows?"),
        "-wide": ("wide", " at the widest shapes, for 2 to 2,048 rows?"),
    }
    for name, (question, lacks, environment) in matmuls.items():
        for suffix, (case, rest) in cases.items():
            yield Step(
                f"matmul-{name}{suffix}",
                question + rest,
                [*matmul, "-k", f"[{case}]"],
                lacks=lacks,
                environment=environment,
                share=8,  # about 4 GB
            )
    measured = [PYTHON, "-m", "benchmarks.matmul", "--matmuls"]
    yield Step(
        "ceilings",
        "How fast does the GPU copy, and multiply by cuBLAS?",
        [*measured, "--json", str(ceilings)],
        alone=True,
        figures=ceilings,
    )
    # Whether each is right first, of all at a time; what is timed is compiled then.
    for name in MATMULS:
        at = out / f"check-{name}.json"
        yield Step(
            f"check-{name}",
            f"What does the self-check say of the matmul {name}?",
            [*measured, name, "--parts", "check", "--json", str(at)],
            lacks="an NVIDIA GPU" if name in ("multistage", "fp8") else "",
            figures=at,
            share=12,
        )
    for name in MATMULS:
        at = out / f"time-{name}.json"
        times = ["--parts", "times", "--ceilings", str(ceilings), "--json", str(at)]
        yield Step(
            f"time-{name}",
            f"How fast is the matmul {name}?",
            [*measured, name, *times],
            lacks="an NVIDIA GPU" if name in ("multistage", "fp8") else "",
            alone=True,
            figures=at,
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
            lacks="" if name in FP8_LAYOUTS else f"a GPU, for {name} runs on no CPU",
        )
    for name in FP8_LAYOUTS:
        yield Step(
            f"quantized-{name}-kept",
            f"And kept in FP8, in {name}, whatever that costs?",
            [*pytest, "tests/gpu/test_quantized.py", "-k", f"[{name}]"],
            environment={"MAX_MISTRAL_FP8": "keep"},
            lacks="a GPU, for a CPU has no products in FP8",
        )
    yield Step(
        "serve",
        "Does max serve answer?",
        [*pytest, "tests/gpu/test_serve.py"],
        alone=True,
    )
    gpu = [PYTHON, "-m", "benchmarks.gpu"]
    weights = ["--folder", str(model)]
    yield Step(
        "weights",
        "Are the benchmark's weights there?",
        [*gpu, *weights, "--make"],
    )
    for name in ENGINES:
        at = out / f"speed-{name}.json"
        yield Step(
            f"speed-{name}",
            f"How fast is {name}'s model alone, in tokens a second?",
            [*gpu, name, *weights, "--ceilings", str(ceilings), "--json", str(at)],
            lacks="" if name.lower().startswith("max") else f"{name}, installed",
            alone=True,
            figures=at,
            needs=90,
        )
    ours = out / "serving.json"
    built_in = out / "serving-max.json"
    serving = [PYTHON, "-m", "benchmarks.serving", "--json", str(ours)]
    of_weights = ["--model", str(model), "--ceilings", str(ceilings)]
    of_model = [*of_weights, "--", "--devices", "gpu:0", "--max-length", MAX_LENGTH]
    demo = ["--model", "build/smollm2", "--users", "1", "2", "--rounds", "1"]
    demo += ["--answer-tokens", "8", "--prompt-tokens", "16", "--", "--devices", "cpu"]
    # MAX's own that runs on a CPU; "weights" writes it.
    tiny = ["--model", f"{model}-float32", *demo[2:]]
    gguf = str(ROOT / "build/SmolLM2-135M-Instruct.Q4_1.gguf")
    yield Step(
        "serving",
        "What do 1, 8 and 64 users of max serve get?",
        [*serving, *of_model],
        dry=[*serving, *demo, "--weight-path", gguf],
        alone=True,
        figures=ours,
        needs=120,
    )
    theirs = [*serving[:-1], str(built_in), "--built-in"]
    yield Step(
        "serving-max",
        "And with MAX's own Mistral?",
        [*theirs, *of_model],
        dry=[*theirs, *tiny, "--quantization-encoding", "float32"],
        alone=True,
        figures=built_in,
        needs=120,
    )
    vllm = out / "serving-vllm.json"
    yield Step(
        "serving-vllm",
        "And of vllm serve, where vLLM is installed?",
        [*serving[:-1], str(vllm), "--vllm", *of_weights],
        lacks="vLLM, installed",
        alone=True,
        figures=vllm,
        needs=120,
    )
