"""Answers that end where a stop string begins, however their tokens arrive.

MAX 26.7 looks for stop strings in a tail of the text that it shortens, sends the
stop string and what came with it, and goes on sending what the model wrote until
it was told to stop: the route then has no reason for the end, and answers 400.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from max.pipelines.context import GenerationStatus

ends_at_stops: ContextVar[bool] = ContextVar("ends_at_stops", default=False)
"""Whether this task's answers go through :func:`until_stop`."""


class StopSearch:
    """Finds which stop string is complete first in a text that comes in pieces.

    How the text is cut into pieces changes nothing. Takes time linear in the text
    for each stop string, and keeps no more of the text than the longest has.

    Args:
        stops: Texts of one character or more.

    Attributes:
        held: The end of the text that may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matches = [_Match(stop) for stop in stops]
        self.held = ""

    def add(self, piece: str) -> tuple[str, str | None]:
        """Goes on with the text.

        Returns:
            What of the text is certain to stand before any stop string and was not
            returned yet; and the stop string that is complete, if one is (then this
            is the last call): of several that end at one character the longest.
        """
        text = self.held + piece
        for end, char in enumerate(piece, len(self.held) + 1):
            complete = [match.stop for match in self._matches if match.add(char)]
            if complete:
                stop = max(complete, key=len)
                self.held = ""
                return text[: end - len(stop)], stop
        certain = len(text) - max((match.length for match in self._matches), default=0)
        self.held = text[certain:]
        return text[:certain], None


class _Match:
    """How much of one stop string a text ends with: Knuth, Morris and Pratt's search.

    Its ``length`` is that of the stop string's longest beginning there.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        # By its first characters' number: of the longest shorter beginning that
        # they end with.
        self._shorter = [0, 0]
        for char in stop[1:]:
            self._shorter.append(self._longer(self._shorter[-1], char))

    def add(self, char: str) -> bool:
        """Takes the next character; returns whether all is matched."""
        self.length = self._longer(self.length, char)
        return self.length == len(self.stop)

    def _longer(self, length: int, char: str) -> int:
        while length and self.stop[length] != char:
            length = self._shorter[length]
        return length + (self.stop[length] == char)


class TokenByToken:
    """MAX's model worker, for one request whose answer comes a token at a time.

    A step may give several tokens, and MAX merges those of steps that it was late
    to read; then no one could say which of them made which part of the text.

    Args:
        worker: MAX's ``ModelWorkerProxy``, which does all else.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._answer: AsyncGenerator[Any, None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    async def stream(self, request_id: Any, context: Any) -> AsyncGenerator[Any, None]:
        """Returns a stream as MAX's worker does, of one token or none at a time."""
        answer = await self._worker.stream(request_id, context)
        self._answer = _split(answer)
        return self._answer

    async def aclose(self) -> None:
        """Ends the stream; MAX cancels the request unless it was read to its end."""
        if self._answer is not None:
            await self._answer.aclose()


async def _split(answer: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    async with aclosing(answer):
        async for outputs, batch_id in answer:
            for output in outputs:
                for i in range(max(1, len(output.tokens))):
                    yield [_token(output, i)], batch_id


def _token(output: Any, i: int) -> Any:
    """Returns one token's part of a ``TextGenerationOutput``."""
    status, scores = output.final_status, output.log_probabilities
    return replace(
        output,
        tokens=output.tokens[i : i + 1],
        log_probabilities=scores and scores[i : i + 1],
        final_status=status if i + 1 >= len(output.tokens) else GenerationStatus.ACTIVE,
    )


async def until_stop(
    chunks: AsyncGenerator[Any, None], worker: TokenByToken, stops: Sequence[str]
) -> AsyncGenerator[Any, None]:
    """Yields an answer up to the stop string that is complete first, without it.

    Text that may begin one is held back, and comes out with the last chunk if it
    does not. The chunk whose token completes one is the last, with END_OF_SEQUENCE:
    usage, ids and log-probabilities are those of all tokens up to that one, also of
    those that the stop string is made of. A chat's reasoning is not searched; a
    completion's is text.

    Args:
        chunks: MAX's ``TokenGeneratorOutput``, of one token each.
        worker: What they come from; told to stop where the answer ends.
        stops: Texts of one character or more.
    """
    search = StopSearch(stops)
    async with aclosing(worker), aclosing(chunks):
        async for chunk in chunks:
            text, stop = search.add(chunk.decoded_tokens or "")
            if stop is not None:
                break
            if chunk.status.is_done:
                text += search.held
            if text or chunk.decoded_tokens is not None:
                chunk = replace(chunk, decoded_tokens=text)
            yield chunk
        else:
            return
    end = GenerationStatus.END_OF_SEQUENCE
    yield replace(chunk, status=end, decoded_tokens=text, stop_sequence=stop)
