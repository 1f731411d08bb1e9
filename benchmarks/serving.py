r"""``max serve`` under so many users: time to the first token, between tokens, rate.

    python -m benchmarks.serving --model build/smollm2 --users 1 8 -- \
      --devices cpu --weight-path $PWD/build/SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.serving --model MODEL --users 1 8 64 -- --devices gpu:0

What follows ``--`` goes to ``max serve``, whose ``--max-length`` and
``--max-batch-size`` are what the users need if it does not name others. Each user
sends one prompt of random tokens and streams the answer, all at once, and again
``--rounds`` times; prompts are never the same, so none comes out of the prefix cache.
Prints medians. Tokens are counted by their ids, for a chunk may have several; the time
between them is an answer's, from its first chunk to its last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from openai import AsyncOpenAI

from benchmarks.measure import tokens
from benchmarks.report import MADE
from max_mistral.command.program import max_program
from workbench.record import origin, place, write

START_SECONDS = 450
SEEDS = count()


@dataclass
class Answer:
    """When the chunks of one answer came, and how many tokens each had."""

    times: list[float]
    """In seconds after it was asked for."""
    counts: list[int]

    @property
    def between(self) -> float | None:
        """The seconds between two tokens, if they came in more than one chunk."""
        later = sum(self.counts[1:])
        return (self.times[-1] - self.times[0]) / later if later else None


@contextmanager
def server(model: str, flags: list[str], built_in: bool = False) -> Iterator[str]:
    """Starts ``max serve`` and yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [max_program() or "max", "serve"]
    if not built_in:
        command += ["--custom-architectures", "max_mistral"]
    command += ["--model", model, "--host", "127.0.0.1", "--port", str(port), *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=dict(os.environ), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not healthy(f"http://127.0.0.1:{port}/v1/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"The server did not start:\n{log.read()[-3000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


async def ask(client: AsyncOpenAI, model: str, prompt: int, answer: int) -> Answer:
    """Streams one answer of ``answer`` tokens."""
    start = time.perf_counter()
    stream = await client.completions.create(
        model=model,
        prompt=tokens(prompt, next(SEEDS)),
        max_tokens=answer,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    found = Answer([], [])
    async for chunk in stream:
        ids = chunk.choices[0].model_extra if chunk.choices else None
        found.times.append(time.perf_counter() - start)
        found.counts.append(len((ids or {}).get("token_ids") or []))
    if not sum(found.counts):
        sys.exit("The server gave no token ids, by which tokens are counted.")
    return found


async def crowd(
    url: str, model: str, users: int, prompt: int, answer: int
) -> dict[str, float]:
    """Returns what users who ask at once get."""
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=400) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(ask(client, model, prompt, answer) for _ in range(users))
        )
        seconds = time.perf_counter() - start
    said = {
        "first token, ms": 1e3 * statistics.median(a.times[0] for a in answers),
        "last first token, ms": 1e3 * max(a.times[0] for a in answers),
        "tokens/s, all users": sum(sum(a.counts) for a in answers) / seconds,
    }
    gaps = [a.between for a in answers if a.between is not None]
    if gaps:
        said["between tokens, ms"] = 1e3 * statistics.median(gaps)
    return said


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Returns those of what every round has."""
    names = [name for name in rounds[0] if all(name in found for found in rounds)]
    return {name: statistics.median(found[name] for found in rounds) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--built-in", action="store_true", help="MAX's own Mistral")
    parser.add_argument("--json", type=place, help="where to write the results")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:at])
    most = arguments.prompt_tokens + arguments.answer_tokens
    flags = ["--max-length", str(most), "--max-batch-size", str(max(arguments.users))]
    flags += sys.argv[at + 1 :]  # of a flag that is there twice the last one counts
    report: dict[str, Any] = {MADE: origin("max")}
    sizes = (arguments.prompt_tokens, arguments.answer_tokens)
    # As timeout sends it: the server has to end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with server(arguments.model, flags, arguments.built_in) as url:
        for users in arguments.users:
            rounds = [
                asyncio.run(crowd(url, arguments.model, users, *sizes))
                for _ in range(1 + arguments.rounds)
            ][1:]  # the first one warms up
            found = medians(rounds)
            report[f"{users} users"] = found | {"rounds": rounds}
            write(arguments.json, report)
            print(f"{users} users", flush=True)
            for name, value in found.items():
                print(f"  {name:22}{value:10.1f}", flush=True)


if __name__ == "__main__":
    main()
