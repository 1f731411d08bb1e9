"""Checks a GPU step by step: are the answers right, and how fast do they come?

    python scripts/check_gpu.py                     # every step without a result yet
    python scripts/check_gpu.py --steps matmul-own serving --again
    python scripts/check_gpu.py --jobs 8            # on many cores: 8 steps at a time
    python scripts/check_gpu.py --dry-run           # without a GPU: do the steps run?

A step is a process of its own, which ends within 8 minutes. Its result is written as
it comes, so a check that is cut off goes on where it was. ``report.md`` and
``report.json`` answer each step's question in a line. Exits with 1 if an answer is no.
Most of a step's time goes into compiling; steps that measure time wait for all others
to end and run one by one.

Needs what ``pip install '.[dev]'`` brings; ``scripts/pack_gpu.sh`` packs it for a
machine without a network. The demo's model has to be there (``make build/smollm2``).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
SECONDS = 480
# Percent of the GPU's memory for each of several steps at a time. Models are tiny.
SHARE = 4
# pytest's "no tests were run".
NOTHING = 5

CONFIGS = ["gqa", "mha_tied", "window", "ministral", "ministral3", "head_dim_128"]
LAYOUTS = ["static", "native", "block", "autofp8", "autofp8_dynamic", "channel"]
LAYOUTS += ["compressed_static", "nvfp4", "modelopt_nvfp4", "modelopt_fp8"]
LAYOUTS += ["gptq", "gptq_desc_act"]
FP8_LAYOUTS = [n for n in LAYOUTS if "nvfp4" not in n and "gptq" not in n]
ENGINES = ["max_mistral", "MAX", "transformers"]


@dataclass(frozen=True)
class Step:
    """One question, and the command that answers it by its exit status."""

    name: str
    question: str
    command: list[str]
    dry: list[str] | None = None
    """What stands for it where there is no GPU; by default itself."""
    environment: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    """Whether it measures time, or takes most of the GPU's memory."""


Verdict = Literal["yes", "no", "too slow", "left out"]


@dataclass
class Result:
    """What came of a step."""

    verdict: Verdict
    seconds: float
    command: str
    output: str
    """The last lines; of a step that prints figures, those."""


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
        "matmul-own", "Is MAX's own bfloat16 matmul right, for 1 to 256 rows?", matmul
    )
    yield Step(
        "matmul-cublas",
        "Is cuBLAS's?",
        matmul,
        environment={"MAX_MISTRAL_VENDOR_BLAS": "1"},
    )
    yield Step(
        "matmul-multistage",
        "Is MAX's multistage GEMM?",
        matmul,
        environment={"MAX_MISTRAL_MATMUL": "multistage"},
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
        )
    for name in FP8_LAYOUTS:
        yield Step(
            f"quantized-{name}-kept",
            f"And on MAX's products of FP8 in {name}, whatever they cost?",
            [*pytest, "tests/gpu/test_quantized.py", "-k", f"[{name}]"],
            environment={"MAX_MISTRAL_FP8": "keep"},
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
        dry=[*gpu, "--help"],
    )
    for name in ENGINES:
        yield Step(
            f"speed-{name}",
            f"How fast is {name}'s model alone, in tokens a second?",
            [*gpu, name, str(out / "model")],
            dry=[*gpu, "--help"],
            alone=True,
        )
    serving = [PYTHON, "-m", "benchmarks.serving", "--json", str(out / "serving.json")]
    demo = ["--model", "build/smollm2", "--users", "1", "2", "--rounds", "1"]
    demo += ["--answer-tokens", "8", "--prompt-tokens", "16", "--", "--devices", "cpu"]
    gguf = str(ROOT / "build/SmolLM2-135M-Instruct.Q4_1.gguf")
    yield Step(
        "serving",
        "What do 1, 8 and 64 users of max serve get?",
        [*serving, "--model", str(out / "model"), "--", "--devices", "gpu:0"],
        dry=[*serving, *demo, "--weight-path", gguf],
    )


def run(step: Step, dry: bool, seconds: float) -> Result:
    """Runs a step, and ends all its processes when its time is over."""
    command = (step.dry or step.command) if dry else step.command
    variables = {"MODULAR_TELEMETRY_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    variables["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(os.environ) | variables | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        verdict = judge(process.returncode, output)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        verdict = "too slow"
    words = [f"{k}={v}" for k, v in step.environment.items()] + command
    words = ["python" if word == PYTHON else word for word in words]
    return Result(
        verdict, time.monotonic() - start, shlex.join(words), output[-6000:].strip()
    )


def judge(status: int, output: str) -> Verdict:
    """Returns what a step's exit status and its last line say."""
    last = output.strip().splitlines()[-1:] or [""]
    skipped = " skipped" in last[0] and " passed" not in last[0]
    if status == NOTHING or (status == 0 and skipped):
        return "left out"
    return "no" if status else "yes"


def write(out: Path, every: list[Step], found: dict[str, Result]) -> None:
    """Writes the report anew, whole."""
    lines = ["# What a GPU check found", "", "| step | question | answer | seconds |"]
    lines.append("|---|---|---|---|")
    for step in every:
        result = found.get(step.name)
        answer = f"{result.verdict} | {result.seconds:.0f}" if result else "not asked |"
        lines.append(f"| {step.name} | {step.question} | {answer} |")
    for name, result in found.items():
        lines += ["", f"## {name}", "", f"    {result.command}", "", "```"]
        lines += [result.output[-2000:].replace("```", "'''"), "```"]
    values = {name: asdict(result) for name, result in found.items()}
    for file, text in [
        ("report.json", json.dumps(values, indent=1)),
        ("report.md", "\n".join(lines) + "\n"),
    ]:
        partial = out / (file + ".partial")
        partial.write_text(text)
        partial.replace(out / file)


def read(out: Path) -> dict[str, Result]:
    """Returns the results of an earlier run."""
    path = out / "report.json"
    if not path.exists():
        return {}
    return {name: Result(**v) for name, v in json.loads(path.read_text()).items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="by default all")
    parser.add_argument("--again", action="store_true", help="those with a result too")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    parser.add_argument("--jobs", type=int, default=1, help="steps at a time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a step")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if arguments.dry_run:
        out /= "dry"
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: at least one step at a time")
    out.mkdir(parents=True, exist_ok=True)
    every = list(steps(out))
    known = {step.name for step in every}
    if unknown := set(arguments.steps or ()) - known:
        parser.error(f"no steps: {', '.join(sorted(unknown))}. There are: {known}")
    found = read(out)
    asked = [s for s in every if s.name in (arguments.steps or known)]
    todo = [s for s in asked if arguments.again or s.name not in found]
    lock = Lock()

    def ask(step: Step) -> None:
        result = run(step, arguments.dry_run, arguments.seconds)
        with lock:
            found[step.name] = result
            said = f"{result.verdict} ({result.seconds:.0f} s)"
            print(f"{step.name}: {step.question} {said}", flush=True)
            write(out, every, found)

    if arguments.jobs > 1:
        share = {"MODULAR_DEVICE_CONTEXT_MEMORY_MANAGER_SIZE_PERCENT": str(SHARE)}
        os.environ |= share
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(ask, (s for s in todo if not s.alone)))
        for name in share:
            del os.environ[name]
        todo = [s for s in todo if s.alone]
    for step in todo:
        ask(step)
    print(f"The report is {out / 'report.md'}.")
    write(out, every, found)
    bad = [s.name for s in asked if found[s.name].verdict in ("no", "too slow")]
    if bad:
        sys.exit(f"Not as it should be: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
