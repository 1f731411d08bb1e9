"""Checks a GPU step by step: are the answers right, and how fast do they come?

    python scripts/check_gpu.py                     # every step without a result yet
    python scripts/check_gpu.py --steps check-own serving --again
    python scripts/check_gpu.py --jobs 8            # on many cores: 8 steps at a time
    python scripts/check_gpu.py --for 560           # what 560 seconds suffice for
    python scripts/check_gpu.py --dry-run           # without a GPU: do the steps run?

Each step is a process of its own. It is ended after 8 minutes, or when this script
ends, with everything that it has started. Its result is written as it comes, so a
check that is cut off goes on where it was, if the GPU, the commit and MAX are the
same, and no file differs from the commit. A step that was too slow is asked again.

``report.md`` and ``report.json`` answer each step's question in a line, and have
max_mistral's figures beside other engines'; ``figures``, beside them, has each step's.
Exits with 1 if an answer is no. That the self-check finds a matmul wrong is an answer
to what it says, not a no.

Most of a step's time goes into compiling. Steps that measure time run one by one, and
nothing beside them. ``FIRST`` in ``scripts/gpu_steps.py`` says what is asked first;
with ``--for`` no step begins that has too little time left.

Needs what ``pip install '.[dev]'`` brings; ``scripts/pack_gpu.sh`` packs it for a
machine without a network. The demo's model has to be there (``make build/smollm2``).
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.gpu_report import read, write
from scripts.gpu_run import UNSETTLED, VARIABLES, Result, run, stop
from scripts.gpu_steps import PYTHON, ROOT, Step, in_order, steps
from workbench import record
from workbench.check_device import GPU_NAME
from workbench.verdict import cause

SECONDS = 480
ORIGIN_SECONDS = 120


def origin(dry: bool) -> dict[str, str]:
    """Returns the GPU, and the commit and the versions that are checked on it.

    Exits where a GPU is needed and none is found: every step would end the same way.
    """
    found = record.origin("max", "nvidia-cublas")
    checked: dict[str, str] = {
        "commit": found["commit"],
        "max": found.get("max", "none"),
        # The package's version: one of the system, which goes first, is not asked.
        "nvidia-cublas": found.get("nvidia-cublas", "none"),
    }
    if dry:
        return {"gpu": "none: a dry run"} | checked
    try:
        done = subprocess.run(
            [PYTHON, "-c", GPU_NAME],
            cwd=ROOT,
            env=dict(os.environ) | VARIABLES,
            capture_output=True,
            text=True,
            check=False,
            timeout=ORIGIN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        sys.exit(
            f"MAX has not found a GPU here within {ORIGIN_SECONDS} s, and the steps "
            "need one. See whether nvidia-smi or rocm-smi answers."
        )
    name = done.stdout.strip() if done.returncode == 0 else ""
    if not name:
        sys.exit(
            f"MAX finds no GPU here, and the steps need one: {cause(done.stderr)} See "
            "whether nvidia-smi or rocm-smi lists it, and whether this Python has MAX; "
            "or give --dry-run, to see without a GPU whether the steps run."
        )
    return {"gpu": name} | checked


class Check:
    """Asks steps, and writes the report after each."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        deadline: float,
        out: Path,
        every: list[Step],
        made: dict[str, str],
    ) -> None:
        self.arguments, self.deadline = arguments, deadline
        self.out, self.every, self.made = out, every, made
        self.found = read(out, made)
        self.lock = Lock()
        self.late: list[str] = []
        """Steps for which no time was left, whatever an earlier check found."""
        # Of a check before, which is not gone on with.
        for step in every:
            if step.figures is not None and step.name not in self.found:
                step.figures.unlink(missing_ok=True)

    def ask_all(self, todo: list[Step]) -> None:
        """Asks steps in their order; those side by side that may run at a time."""
        for alone, some in groupby(todo, lambda step: step.alone):
            if alone or self.arguments.jobs == 1:
                for step in some:
                    self.ask(step)
                continue
            with ThreadPoolExecutor(self.arguments.jobs) as pool:
                list(pool.map(lambda step: self.ask(step, False), some))

    def ask(self, step: Step, is_alone: bool = True) -> None:
        """Asks one, if there is time."""
        left = self.deadline - time.monotonic()
        limit = min(self.arguments.seconds, left)
        if left < step.needs:
            said = f"needs {step.needs} s, {max(0, left):.0f} s were left"
            result = Result("no time left", 0, "", "", said)
            self.keep(step, self.found.get(step.name, result))
            self.late.append(step.name)
            return
        figures = take(step.figures)
        result = run(step, self.arguments.dry_run, limit, is_alone)
        if result.verdict == "too slow" and limit < self.arguments.seconds:
            result.verdict = "no time left"
            self.late.append(step.name)
        said = f"{result.answer} ({result.seconds:.0f} s)"
        print(f"{step.name}: {step.question} {said}", flush=True)
        if result.verdict == "no time left" and not self.is_open(step):
            # What is known stays, and its figures.
            result = self.found[step.name]
            if step.figures is not None and figures is not None:
                step.figures.write_bytes(figures)
        self.keep(step, result)

    def keep(self, step: Step, result: Result) -> None:
        """Takes a result into the report."""
        with self.lock:
            self.found[step.name] = result
            self.write()

    def is_open(self, step: Step) -> bool:
        """Whether a step is to be asked (again) for want of an answer."""
        return step.name not in self.found or self.found[step.name].verdict in UNSETTLED

    def write(self) -> None:
        """Writes the report."""
        write(self.out, self.every, self.made, self.found)


def take(path: Path | None) -> bytes | None:
    """Returns what is in a file, if there is one, and removes it."""
    if path is None or not path.exists():
        return None
    found = path.read_bytes()
    path.unlink()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="by default all")
    parser.add_argument("--again", action="store_true", help="those with a result too")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    parser.add_argument("--jobs", type=int, default=1, help="steps at a time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a step")
    parser.add_argument(
        "--for",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        dest="for_seconds",
        help="of all steps together; those without time are asked the next time",
    )
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    out = arguments.out.resolve()
    if arguments.dry_run:
        out /= "dry"
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: at least one step at a time")
    if arguments.for_seconds <= 0:
        parser.error(f"--for {arguments.for_seconds:g}: more than 0 seconds")
    figures = out / "figures"
    every = in_order(steps(figures, dry=arguments.dry_run))
    known = {step.name for step in every}
    if unknown := set(arguments.steps or ()) - known:
        parser.error(
            f"no steps: {', '.join(sorted(unknown))}. There are: "
            f"{', '.join(sorted(known))}"
        )
    deadline = time.monotonic() + arguments.for_seconds
    made = origin(arguments.dry_run)
    figures.mkdir(parents=True, exist_ok=True)
    check = Check(arguments, deadline, out, every, made)
    asked = [s for s in every if s.name in (arguments.steps or known)]
    check.ask_all([s for s in asked if arguments.again or check.is_open(s)])
    print(f"The report is {out / 'report.md'}.")
    check.write()
    if check.late:
        print(f"No time was left for {', '.join(check.late)}. Run this again for them.")
    bad = [s.name for s in asked if check.found[s.name].verdict in ("no", "too slow")]
    if arguments.dry_run:
        # Else a step that never runs would be taken for one that is proven.
        left_out = [s for s in asked if check.found[s.name].verdict == "left out"]
        bad += [f"{s.name} (left out)" for s in left_out if not s.lacks]
    if bad:
        sys.exit(f"Not as it should be: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
