"""Checks a GPU step by step: are the answers right, and how fast do they come?

    python scripts/check_gpu.py                     # every step without a result yet
    python scripts/check_gpu.py --steps matmul-own serving --again
    python scripts/check_gpu.py --jobs 8            # on many cores: 8 steps at a time
    python scripts/check_gpu.py --dry-run           # without a GPU: do the steps run?

A step is a process of its own, which ends within 8 minutes, and with this one, with
all that it has started. Its result is written as
it comes, so a check that is cut off goes on where it was, if the GPU, the commit and
MAX are the same, and no file differs from the commit. ``report.md`` and
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.gpu_steps import PYTHON, ROOT, Step, steps
from workbench import check_device, record

SECONDS = 480
# Percent of the GPU's memory for each of several steps at a time. Models are tiny.
SHARE = 4
# pytest's "no tests were run".
NOTHING = 5
GPU = "from max.driver import Accelerator; print(Accelerator().model_name)"

VARIABLES = {"MODULAR_TELEMETRY_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
# How the names begin of variables that choose what a model runs on. A step sets its
# own: with the shell's it would ask another question than it says.
CHOICES = ("MAX_MISTRAL_", "MAX_SERVE_USE_VENDOR_BLAS")
Verdict = Literal["yes", "no", "too slow", "left out"]


@dataclass
class Result:
    """What came of a step."""

    verdict: Verdict
    seconds: float
    command: str
    output: str
    """The last lines; of a step that prints figures, those."""


def run(step: Step, dry: bool, seconds: float, is_alone: bool = True) -> Result:
    """Runs a step, and ends all its processes when its time is over."""
    command = (step.dry or step.command) if dry else step.command
    variables = {k: v for k, v in os.environ.items() if not k.startswith(CHOICES)}
    variables |= VARIABLES
    if dry:
        variables[check_device.VARIABLE] = "cpu"
    variables["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    if not is_alone:
        variables["MODULAR_DEVICE_CONTEXT_MEMORY_MANAGER_SIZE_PERCENT"] = str(SHARE)
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Not a session: what ends this script's session ends the steps' too.
        process_group=0,
    )
    running.add(process)
    try:
        output, _ = process.communicate(timeout=seconds)
        verdict = judge(process.returncode, output)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        verdict = "too slow"
    running.discard(process)
    words = [f"{k}={v}" for k, v in step.environment.items()] + command
    words = ["python" if word == PYTHON else word for word in words]
    return Result(
        verdict, time.monotonic() - start, shlex.join(words), output[-6000:].strip()
    )


running: set[subprocess.Popen[str]] = set()
"""The steps of now."""


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a step and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop(number: int, frame: object) -> None:
    """A signal's handler: ends the steps, then this process."""
    for process in list(running):
        kill(process)
    # Not sys.exit, which would wait for the other threads' steps.
    os._exit(128 + number)


def judge(status: int, output: str) -> Verdict:
    """Returns what a step's exit status and its last line say."""
    last = output.strip().splitlines()[-1:] or [""]
    skipped = " skipped" in last[0] and " passed" not in last[0]
    if status == NOTHING or (status == 0 and skipped):
        return "left out"
    return "no" if status else "yes"


def origin(dry: bool) -> dict[str, str]:
    """Returns the GPU, and the commit and the versions that are checked on it."""
    found = record.origin("max", "nvidia-cublas")
    checked: dict[str, str] = {
        "commit": found["commit"],
        "max": found.get("max", "none"),
        # The package's version: one of the system, which goes first, is not asked.
        "nvidia-cublas": found.get("nvidia-cublas", "none"),
    }
    if dry:
        return {"gpu": "none: a dry run"} | checked
    # In a process of its own, for MAX takes most of the GPU's memory at once.
    done = subprocess.run(
        [PYTHON, "-c", GPU],
        cwd=ROOT,
        env=dict(os.environ) | VARIABLES,
        capture_output=True,
        text=True,
        check=False,
    )
    name = done.stdout.strip() if done.returncode == 0 else ""
    # Without one the steps say what is amiss.
    return {"gpu": name or "none that MAX finds"} | checked


def write(
    out: Path, every: list[Step], made: dict[str, str], found: dict[str, Result]
) -> None:
    """Writes the report anew, whole."""
    lines = ["# What a GPU check found", ""]
    lines += [
        f"On {made['gpu']}, at commit {made['commit']}, with MAX {made['max']}.",
        "",
        "| step | question | answer | seconds |",
    ]
    lines.append("|---|---|---|---|")
    for step in every:
        result = found.get(step.name)
        answer = f"{result.verdict} | {result.seconds:.0f}" if result else "not asked |"
        lines.append(f"| {step.name} | {step.question} | {answer} |")
    for name, result in found.items():
        lines += ["", f"## {name}", "", f"    {result.command}", "", "```"]
        lines += [result.output[-2000:].replace("```", "'''"), "```"]
    values = {name: asdict(result) for name, result in found.items()}
    record.write(out / "report.json", made | {"steps": values})
    record.write_text(out / "report.md", "\n".join(lines) + "\n")


def read(out: Path, made: dict[str, str]) -> dict[str, Result]:
    """Returns the results of an earlier run; exits if that was on other terms.

    None of a tree that differed from its commit or has none: nothing says in what.
    """
    path = out / "report.json"
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    for key, now in made.items():
        if (then := values.get(key, "not said")) != now:
            sys.exit(
                f"{path} has results of another {key}: {then}. Here it is {now}. To "
                "begin anew, remove that file, or give another folder with --out."
            )
    if made["commit"] == "unknown" or made["commit"].endswith("-dirty"):
        print(
            f"{path} has results of {made['commit']}, whose changes may be others than "
            "those of now. Every step asked for runs again; the report begins anew.",
            flush=True,
        )
        return {}
    return {name: Result(**v) for name, v in values["steps"].items()}


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
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
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
    made = origin(arguments.dry_run)
    found = read(out, made)
    asked = [s for s in every if s.name in (arguments.steps or known)]
    todo = [s for s in asked if arguments.again or s.name not in found]
    lock = Lock()

    def ask(step: Step, is_alone: bool = True) -> None:
        result = run(step, arguments.dry_run, arguments.seconds, is_alone)
        with lock:
            found[step.name] = result
            said = f"{result.verdict} ({result.seconds:.0f} s)"
            print(f"{step.name}: {step.question} {said}", flush=True)
            write(out, every, made, found)

    if arguments.jobs > 1:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda s: ask(s, False), [s for s in todo if not s.alone]))
        todo = [s for s in todo if s.alone]
    for step in todo:
        ask(step)
    print(f"The report is {out / 'report.md'}.")
    write(out, every, made, found)
    bad = [s.name for s in asked if found[s.name].verdict in ("no", "too slow")]
    if arguments.dry_run:
        # Else a step that never runs would be taken for one that is proven.
        left_out = [s for s in asked if found[s.name].verdict == "left out"]
        bad += [f"{s.name} (left out)" for s in left_out if not s.needs]
    if bad:
        sys.exit(f"Not as it should be: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
