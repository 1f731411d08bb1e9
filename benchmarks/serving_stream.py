"""An answer that a server streams: noted as it comes, and read afterwards.

While answers come, only the time and the bytes of each piece are noted. Else 64 users
would measure how fast this client reads HTTP and JSON: 0.1 ms an event with httpx,
where 64 events come in a step of 5 ms. To note one takes 0.01 ms.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

# An answer that takes longer has failed.
SECONDS = 400
NO_IDS = (
    "The server gave no token ids, by which tokens are counted, though it was asked "
    "for them (return_token_ids). max serve gives them, vLLM from 0.10.2 on."
)
# What h11 says where it needs more to go on.
PAUSES = (h11.NEED_DATA, h11.PAUSED)


class ServingError(RuntimeError):
    """An answer that cannot be measured, in words for who runs the benchmark."""


@dataclass
class Answer:
    """When the tokens of one answer came, by the system's clock."""

    asked: float
    times: list[float] = field(default_factory=list)
    """Of each event that brought tokens."""
    counts: list[int] = field(default_factory=list)
    """How many it brought."""

    @property
    def first(self) -> float:
        """The seconds from the question to the first token."""
        return self.times[0] - self.asked

    @property
    def between(self) -> float | None:
        """The seconds between two tokens, if not all came at the same time."""
        seconds = self.times[-1] - self.times[0]
        return seconds / sum(self.counts[1:]) if seconds else None


@dataclass
class Raw:
    """An answer as it came: when which bytes were there."""

    http: h11.Connection
    """What reads it as HTTP, once all is there."""
    asked: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)


class Notes(asyncio.Protocol):
    """A connection that notes what comes, and when, until the server closes it."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Of asyncio: something came."""
        self.raw.pieces.append((time.monotonic(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: the connection is closed, by the server or by an error."""
        if not self.closed.done():
            self.closed.set_result(None)


async def stream(url: str, body: bytes) -> Raw:
    """Returns one answer, and when each of its pieces came."""
    at = urlsplit(url)
    # So the server ends the connection with the answer, whose end is seen unread.
    headers = {
        "Host": at.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="POST", target=at.path, headers=[*headers.items()])
    sent = (
        http.send(request),
        http.send(h11.Data(body)),
        http.send(h11.EndOfMessage()),
    )
    raw = Raw(http, time.monotonic())
    try:
        async with asyncio.timeout(SECONDS):
            loop = asyncio.get_running_loop()
            transport, notes = await loop.create_connection(
                lambda: Notes(raw), at.hostname or "", at.port or 80
            )
            transport.write(b"".join(part or b"" for part in sent))
            await notes.closed
    except TimeoutError:
        raise ServingError(
            f"An answer had not ended after {SECONDS} s. Ask for shorter ones with "
            "--answer-tokens, or for fewer users at a time."
        ) from None
    except OSError as error:
        raise ServingError(
            f"The server takes no connections any more: {error}"
        ) from None
    return raw


def read(raw: Raw) -> Answer:
    """Returns when how many tokens came.

    Raises:
        ServingError: if an error came, or no end, or nothing to count tokens by.
    """
    answer = Answer(raw.asked)
    for when, data in events(raw):
        if data == b"[DONE]":
            break
        values = json.loads(data)
        if said := values.get("error"):
            raise ServingError(f"The server broke off an answer, and says: {said}")
        count = sum(len(c.get("token_ids") or ()) for c in values.get("choices", ()))
        if count:
            answer.times.append(when)
            answer.counts.append(count)
    else:
        raise ServingError(
            "An answer ended without data: [DONE], with which every stream of OpenAI's "
            "API ends. The server broke it off."
        )
    if not answer.counts:
        raise ServingError(NO_IDS)
    return answer


def events(raw: Raw) -> Iterator[tuple[float, bytes]]:
    """Yields what each ``data:`` line of an answer has, and when its end came."""
    rest = b""
    for when, part in bodies_of(raw):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield when, line.removeprefix(b"data:").strip()


def bodies_of(raw: Raw) -> Iterator[tuple[float, bytes]]:
    """Yields the parts of an answer's body, and when each came.

    Raises:
        ServingError: if the server refused, or the answer is not whole.
    """
    status, refusal = 200, b""
    try:
        for when, piece in [*raw.pieces, (time.monotonic(), b"")]:
            raw.http.receive_data(piece)  # b"" is the connection's end
            while (found := raw.http.next_event()) not in PAUSES:
                if isinstance(found, h11.Response):
                    status = found.status_code
                elif isinstance(found, h11.Data) and status == 200:
                    yield when, bytes(found.data)
                elif isinstance(found, h11.Data):
                    refusal += found.data
                elif isinstance(found, h11.EndOfMessage | h11.ConnectionClosed):
                    break
    except h11.RemoteProtocolError as error:
        raise ServingError(f"The server broke off an answer ({error}).") from None
    if status != 200:
        said = refusal.decode(errors="replace")[:1000]
        raise ServingError(f"The server answered {status}, not 200, and says: {said}")
