"""The load: clients that ask, leave, dawdle, vanish and send nonsense."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.soak.checks import LIMIT, Outcome, Result, Tally, refusal, unanswered
from tests.soak.malformed import TEXT, Malformed, malformed
from tests.soak.questions import Answer, Question, Streamed, questions, whole
from workbench.checkpoints import BASE

CLIENTS = 24
CONSTRAINED = ("a required call", "a named call", "a schema")


@dataclass
class Load:
    """Clients of one server.

    Args:
        url: Of its API.
        model: Its name there.
        max_length: Of a sequence, in tokens.
        tally: What counts what became of each request.
        wanted: Each question's answer, once :meth:`collect` has asked.
    """

    url: str
    model: str
    max_length: int
    tally: Tally
    wanted: dict[tuple[str, bool], Answer] = field(default_factory=dict)
    work: Iterator[Any] = field(default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self.questions = questions(self.max_length)
        self.malformed = malformed(self.model, BASE["vocab_size"], self.max_length)

    def body(self, question: Question, **changes: Any) -> dict[str, Any]:
        return {"model": self.model, "temperature": 0} | question.body | changes

    async def collect(self) -> dict[tuple[str, bool], Answer]:
        """Asks every question, one at a time, whole and streamed.

        Both say the same, but for a call that is cut off: whole, MAX gives its
        text, for it is none; of a stream the client has read its beginning.
        """
        answers = {}
        async with self.client() as client:
            for question in self.questions:
                response = await client.post(question.path, json=self.body(question))
                assert response.status_code == 200, (question, response.text)
                said = whole(response.json())
                streamed = await self.streamed(client, question)
                cut = streamed.answer.calls and said.finish == "length"
                assert cut or said == streamed.answer, (said, streamed.answer)
                answers[question.name, False] = said
                answers[question.name, True] = streamed.answer
        return answers

    async def streamed(
        self, client: httpx.AsyncClient, question: Question, pause: float = 0
    ) -> Streamed:
        read = Streamed()
        async for line in self.lines(client, question):
            read.read(line)
            await asyncio.sleep(pause)
        return read

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=LIMIT, limits=limits)

    def bytes_a_request(self) -> float:
        """How long the body of a question is in the mean."""
        return statistics.mean(len(json.dumps(self.body(q))) for q in self.questions)

    async def crowd(self) -> None:
        """Asks for long answers at a time, more than there are KV pages for."""
        (long,) = (q for q in self.questions if q.name == "a long answer")

        async def ask(client: httpx.AsyncClient) -> Result:
            response = await client.post(long.path, json=self.body(long))
            return self.judge_response(long, response)

        async with self.client() as client:
            asked = [self.tally.count("crowd", ask(client)) for _ in range(CLIENTS)]
            await asyncio.gather(*asked)

    async def run(self, requests: int, seed: int, faults: bool = True) -> None:
        """Sends ``requests``, some at a time, and waits for what becomes of them.

        Args:
            requests: How many.
            seed: Of the kinds of request and of their order.
            faults: Whether clients leave and send nonsense too.
        """
        rng = random.Random(seed)
        kinds: dict[Any, int] = {self.ask: 30, self.stream: 25, self.sample: 10}
        kinds[self.dawdle] = 4
        if faults:
            kinds |= {self.nonsense: 18, self.cancel: 8, self.vanish: 4}
            kinds[self.deafen] = 1
        plan = rng.choices(list(kinds), list(kinds.values()), k=requests)
        self.work = iter([(kind, random.Random(rng.random())) for kind in plan])

        async def one_client() -> None:
            async with self.client() as client:
                while (step := next(self.work, None)) is not None:
                    kind, own = step
                    await self.tally.count(kind.__name__, kind(client, own))

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))

    def stop(self) -> None:
        """Begins no more requests."""
        self.work = iter(())

    async def ask(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        question = rng.choice(self.questions)
        response = await client.post(question.path, json=self.body(question))
        return self.judge_response(question, response)

    async def stream(
        self, client: httpx.AsyncClient, rng: random.Random, pause: float = 0
    ) -> Result:
        question = rng.choice(self.questions)
        read = await self.streamed(client, question, pause)
        if not read.done:
            return Outcome.LOST, f"{question.name}: the stream has no end"
        return self.judge(question, read.answer, streamed=True)

    async def dawdle(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        """Reads slowly."""
        return await self.stream(client, rng, pause=0.05)

    async def sample(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        """Asks for an answer by chance, of which only the form is known."""
        question = rng.choice(self.questions)
        body = self.body(question, temperature=1.5, seed=rng.randrange(2**64))
        response = await client.post(question.path, json=body)
        if response.status_code != 200:
            return unanswered(response.status_code, response.text, question.name)
        answer = whole(response.json())
        text = answer.calls[0][1] if answer.calls else answer.text
        bound = question.name in CONSTRAINED and answer.finish != "length"
        if bound and json.loads(text)["a"] not in (1, 2):
            return Outcome.WRONG, f"{question.name}: {answer}"
        return Outcome.RIGHT, ""

    async def cancel(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        """Leaves in mid-stream."""
        left = rng.randrange(12)
        async for _ in self.lines(client, rng.choice(self.questions)):
            if (left := left - 1) < 0:
                break
        return Outcome.LEFT, ""

    async def vanish(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        """Leaves within the request, or before the answer."""
        request = self.raw(rng.choice(self.questions), stream=rng.random() < 0.5)
        end = rng.choice([rng.randrange(1, len(request)), len(request)])
        await self.hold(request[:end], rng.random() * 0.2)
        return Outcome.LEFT, ""

    async def deafen(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        """Never reads the longest answer, and leaves after a while."""
        most = {"max_tokens": self.max_length - 8, "prompt": "abc"}
        question = Question("deaf", TEXT, most)
        await self.hold(self.raw(question, stream=True), 1 + rng.random())
        return Outcome.LEFT, ""

    async def nonsense(self, client: httpx.AsyncClient, rng: random.Random) -> Result:
        wrong = rng.choice(self.malformed)
        headers = {"Content-Type": "application/json"} | wrong.headers
        response = await client.post(wrong.path, content=wrong.content, headers=headers)
        return self.judge_nonsense(wrong, response)

    def judge_nonsense(self, wrong: Malformed, response: httpx.Response) -> Result:
        if response.status_code == 200 and wrong.harmless:
            return Outcome.RIGHT, ""
        return refusal(response.status_code, response.text, wrong.name)

    def judge_response(self, question: Question, response: httpx.Response) -> Result:
        if response.status_code != 200:
            return unanswered(response.status_code, response.text, question.name)
        return self.judge(question, whole(response.json()))

    def judge(
        self, question: Question, answer: Answer, streamed: bool = False
    ) -> Result:
        want = self.wanted[question.name, streamed]
        if answer == want:
            return Outcome.RIGHT, ""
        return Outcome.WRONG, f"{question.name}: {answer} instead of {want}"

    async def lines(
        self, client: httpx.AsyncClient, question: Question
    ) -> AsyncIterator[str]:
        body = self.body(question, stream=True)
        async with client.stream("POST", question.path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise httpx.HTTPStatusError(
                    question.name, request=response.request, response=response
                )
            async for line in response.aiter_lines():
                yield line

    def raw(self, question: Question, stream: bool) -> bytes:
        """A request as it goes over the wire."""
        body = json.dumps(self.body(question, stream=stream))
        lines = [f"POST /v1/{question.path} HTTP/1.1", "Host: soak"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", body]).encode()

    async def hold(self, request: bytes, seconds: float) -> None:
        """Sends bytes, and closes the connection later without having read."""
        address = httpx.URL(self.url)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, (address.host, address.port))
            await loop.sock_sendall(connection, request)
            await asyncio.sleep(seconds)
