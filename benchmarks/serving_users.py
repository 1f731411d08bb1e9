"""The users of ``benchmarks/serving.py``, who ask all at once, in several processes.

One process would be busy where many are answered. This module is what runs in each:
it reads a line of JSON with what to ask, says that it is ready, waits for another line,
asks, and writes a line with the answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from benchmarks.measure import tokens
from benchmarks.serving_stream import Answer, ServingError, read, stream

# No two prompts are the same, so that none comes out of a server's prefix cache.
SEEDS = count()


@dataclass(frozen=True)
class Crowd:
    """So many users."""

    users: int
    members: list[subprocess.Popen[str]]
    """The processes that they are spread over."""

    def ask(self, url: str, request: dict[str, Any], prompt: int) -> list[Answer]:
        """Returns the answers to all users, who ask at once.

        Args:
            url: Of the server's completions.
            request: What all ask for, but the prompt.
            prompt: The tokens of each one's prompt.

        Raises:
            ServingError: if one was not answered.
        """
        bodies = [
            json.dumps(request | {"prompt": tokens(prompt, next(SEEDS))})
            for _ in range(self.users)
        ]
        for i, member in enumerate(self.members):
            tell(member, {"url": url, "bodies": bodies[i :: len(self.members)]})
        for member in self.members:
            hear(member)  # is ready
        for member in self.members:
            tell(member, {})
        return [Answer(**a) for member in self.members for a in hear(member)["answers"]]


@contextmanager
def crowd(users: int, processes: int | None = None) -> Iterator[Crowd]:
    """Starts the processes of so many users, and ends them.

    Args:
        users: How many.
        processes: By default one for four cores, for the server needs the others.
    """
    number = min(users, processes or max(1, (os.cpu_count() or 1) // 4))
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving_users"],
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    try:
        yield Crowd(users, members)
    finally:
        for member in members:
            member.kill()
            member.communicate()  # closes the pipes


def tell(member: subprocess.Popen[str], values: dict[str, Any]) -> None:
    """Sends a line to a process."""
    assert member.stdin is not None
    member.stdin.write(json.dumps(values) + "\n")
    member.stdin.flush()


def hear(member: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns the next line of a process.

    Raises:
        ServingError: if it tells of one, or ended.
    """
    assert member.stdout is not None
    line = member.stdout.readline()
    if not line:
        raise ServingError("A process of the users ended; what it printed is above.")
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise ServingError(values["error"])
    return values


async def ask_all(url: str, bodies: list[str]) -> list[Answer]:
    """Returns the answers to the users of one process."""
    raws = await asyncio.gather(*(stream(url, body.encode()) for body in bodies))
    return [read(raw) for raw in raws]


def main() -> None:
    """A process of users, until its input ends."""
    while line := sys.stdin.readline():
        asked = json.loads(line)
        print("{}", flush=True)
        sys.stdin.readline()
        try:
            answers = asyncio.run(ask_all(asked["url"], asked["bodies"]))
            said: dict[str, Any] = {"answers": [asdict(answer) for answer in answers]}
        except ServingError as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
