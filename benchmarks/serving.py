r"""A server under so many users: time to the first token, between tokens, rate, memory.

    python -m benchmarks.serving --model build/smollm2 --users 1 8 -- \
      --devices cpu --weight-path $PWD/build/SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.serving --model MODEL --users 1 8 64 -- --devices gpu:0

The server is ``max serve`` with max_mistral; with ``--built-in``, with MAX's own
Mistral; with ``--vllm`` it is ``vllm serve``, where that is installed. What follows
``--`` goes to the server, which is also told how long an answer may be and how many
users there are. Each user sends one prompt of random tokens and streams the answer, all
at once, and again ``--rounds`` times; prompts are never the same, so none comes out of
the prefix cache. Prints medians. Tokens are counted by their ids, for an event may have
several; the time between them is an answer's, from its first event to its last.

The memory is the most that is seen in a first round, which is not timed. On a GPU it is
what ``nvidia-smi`` says is used more than before the server started; most of that may
be what the server keeps free for more requests. On a CPU it is that of the server's
processes. The shares of the GPU's bandwidth and peak, which ``benchmarks/matmul.py``
measures, are taken of the time between tokens, in which the server may also have read
the prompts of others.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import ask
from benchmarks.report import MADE
from benchmarks.serving_servers import (
    BUILT_IN,
    OURS,
    VLLM,
    Server,
    command,
    most,
    server,
    vllm_program,
)
from benchmarks.serving_shares import find_ceilings, read_flags, shares, unknown
from benchmarks.serving_stream import Answer, ServingError
from benchmarks.serving_users import Crowd, crowd
from workbench.check_device import GPU_NAME
from workbench.record import origin, place, write
from workbench.verdict import LEFT_OUT, say


def figures(answers: list[Answer]) -> dict[str, float]:
    """Returns what users who asked at once got."""
    start = min(a.asked for a in answers)
    end = max(a.times[-1] for a in answers)
    said = {
        "first token, ms": 1e3 * statistics.median(a.first for a in answers),
        "last first token, ms": 1e3 * max(a.first for a in answers),
        "tokens/s, all users": sum(sum(a.counts) for a in answers) / (end - start),
        "tokens of an answer": statistics.median(sum(a.counts) for a in answers),
    }
    gaps = [a.between for a in answers if a.between is not None]
    if gaps:
        said["between tokens, ms"] = 1e3 * statistics.median(gaps)
    return said


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Returns those of what every round has."""
    names = [name for name in rounds[0] if all(name in found for found in rounds)]
    return {name: statistics.median(found[name] for found in rounds) for name in names}


def measure(
    running: Server, users: Crowd, request: dict[str, Any], prompt: int, rounds: int
) -> dict[str, Any]:
    """Returns medians, what is in each round, and the memory."""
    with most(running.memory) as memory:
        users.ask(running.completions, request, prompt)
    found = [
        figures(users.ask(running.completions, request, prompt)) for _ in range(rounds)
    ]
    return medians(found) | memory | {"rounds": found}


def sharing(
    arguments: argparse.Namespace, flags: list[str], gpu: str
) -> Callable[[int, float], dict[str, float]]:
    """Returns what makes shares of the GPU of users and seconds between tokens.

    It makes none without a GPU, nor where the model or what the GPU reaches is not
    known, which is said.
    """
    if not gpu:
        return lambda users, seconds: {}
    why = unknown(arguments.model, flags)
    if why is None:
        beside = arguments.json and arguments.json.parent / "ceilings.json"
        ceilings = find_ceilings(arguments.ceilings, beside or None)
        why = ceilings.get("failed")
    if why is not None:
        print(f"Shares of the GPU are left out: {why.rstrip('.')}.", flush=True)
        return lambda users, seconds: {}
    config = json.loads((Path(arguments.model) / "config.json").read_text())
    before = arguments.prompt_tokens + arguments.answer_tokens // 2
    return lambda users, seconds: shares(config, users, before, seconds, ceilings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--built-in", action="store_true", help="MAX's own Mistral")
    engine.add_argument("--vllm", action="store_true", help="vllm serve")
    parser.add_argument("--json", type=place, help="where to write the results")
    parser.add_argument(
        "--ceilings",
        type=Path,
        help="what benchmarks.matmul --json wrote on this GPU, to say what share of it "
        "is taken; by default ceilings.json beside --json, else measured first",
    )
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:at])
    flags = sys.argv[at + 1 :]
    if arguments.vllm and vllm_program() is None:
        print("vLLM is left out: no vllm command beside this Python or on PATH.")
        sys.exit(LEFT_OUT)
    name = BUILT_IN if arguments.built_in else VLLM if arguments.vllm else OURS
    longest = arguments.prompt_tokens + arguments.answer_tokens
    words = command(name, arguments.model, longest, max(arguments.users))
    # As timeout sends it: the server has to end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A GPU of this machine has no part in what --devices leaves to the CPU.
    on_cpu = read_flags(flags).get("--devices", "").startswith("cpu")
    gpu = "" if on_cpu else ask(GPU_NAME)
    share = sharing(arguments, flags, gpu)
    request = {
        "model": arguments.model,
        "max_tokens": arguments.answer_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    sizes = (arguments.prompt_tokens, arguments.rounds)
    log = None
    if arguments.json:
        log = arguments.json.with_suffix(".log")
        print(f"What the server prints goes to {log}.", flush=True)
    try:
        # Of a flag that is there twice the last one counts.
        with server([*words, *flags], bool(gpu), log) as running:
            made = origin("max") | {"server": name, "version": running.version()}
            report: dict[str, Any] = {MADE: made | {"gpu": gpu or "none"}}
            if gpu and not running.memory():
                print("GPU memory is left out: nvidia-smi cannot say it.", flush=True)
            for users in arguments.users:
                with crowd(users) as everyone:
                    found = measure(running, everyone, request, *sizes)
                if "between tokens, ms" in found:
                    found |= share(users, found["between tokens, ms"] / 1e3)
                report[f"{users} users"] = found
                write(arguments.json, report)
                print(table(users, found), flush=True)
    except ServingError as error:
        sys.exit(f"{name}: {error}")
    say(answer(report))


def answer(report: dict[str, Any]) -> str:
    """Returns a line of what each number of users got."""
    return "; ".join(
        f"{users}: {found['tokens/s, all users']:.0f} tokens/s, first token after "
        f"{found['first token, ms']:.0f} ms"
        for users, found in report.items()
        if users != MADE
    )


def table(users: int, found: dict[str, Any]) -> str:
    """Returns lines of what users got."""
    lines = [f"{users} users"]
    for name, value in found.items():
        if name != "rounds":
            lines.append(f"  {name:22}{value:10.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
