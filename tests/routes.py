"""MAX's real OpenAI routes before a model that plays back chosen tokens.

What a client sends goes through MAX's server code and our tokenizer; no graph
is compiled, so a wire format is tested in a second.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from fastapi import FastAPI
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context import (
    GenerationStatus,
    LogProbabilities,
    TextContext,
    TextGenerationOutput,
)
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib.registry import _apply_thinking_region
from max.pipelines.modeling.types import EmbeddingsGenerationOutput, PipelineTask
from max.serve.config import Settings
from max.serve.pipelines.llm import TokenGeneratorPipeline
from max.serve.request import register_request
from max.serve.router import openai_routes
from max.serve.worker_interface import ModelWorkerProxy

from workbench.runner import make_pipeline_config

EOS = 2

# Server-sent events stay with the event loop that they were first used on.
_LOOP = asyncio.Runner()


class Playback(ModelWorkerProxy):
    """A model worker that answers with ``answer``, some tokens at a time.

    Attributes:
        asked: What it was sent with the last request.
        cancelled: The requests that it was told to cancel.
        streams: How many answers are being read.
        may_answer: Set unless it is to wait.
    """

    def __init__(self) -> None:
        self.answer: Sequence[int] = [EOS]
        self.at_a_time = 1
        self.status = GenerationStatus.END_OF_SEQUENCE
        self.asked: TextContext | None = None
        self.cancelled: list[Any] = []
        self.streams = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def cancel(self, request_id: Any) -> None:
        """Takes note, and goes on: what a worker has sent already still comes."""
        self.cancelled.append(request_id)

    async def stream(self, request_id: Any, context: Any) -> Any:
        """Returns a stream of chunks, as MAX's proxy of a process does."""
        # As on the way to a process: this is where some numbers do not fit.
        msgspec.msgpack.encode(context, enc_hook=lambda value: repr(value))
        self.asked = context

        async def chunks() -> Any:
            tokens, size = list(self.answer), self.at_a_time
            self.streams += 1
            try:
                await self.may_answer.wait()
                for at in range(0, len(tokens), size):
                    last = at + size >= len(tokens)
                    some = tokens[at : at + size]
                    output = TextGenerationOutput(
                        request_id=request_id,
                        tokens=some,
                        log_probabilities=scores(some, at)
                        if context.log_probabilities
                        else None,
                        final_status=self.status if last else GenerationStatus.ACTIVE,
                    )
                    yield [output], at
            except BaseException:
                self.cancel(request_id)
                raise
            finally:
                self.streams -= 1

        return chunks()


def scores(tokens: Sequence[int], start: int) -> list[LogProbabilities]:
    """Made-up log-probabilities: minus a token's place in the answer."""
    return [
        LogProbabilities([-float(i)], [{token: -float(i)}], [token])
        for i, token in enumerate(tokens, start)
    ]


class EmbeddingPlayback(Playback):
    """A model worker that embeds a text as its first id and how many it has.

    Attributes:
        given: How many texts it was sent.
        most_streams: How many of them at a time, at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given = self.most_streams = 0

    async def stream(self, request_id: Any, context: Any) -> Any:
        """Returns a stream of one chunk, as MAX's proxy of a process does."""
        self.asked = context
        self.given += 1
        self.streams += 1
        self.most_streams = max(self.most_streams, self.streams)

        async def chunks() -> Any:
            try:
                await self.may_answer.wait()
                await asyncio.sleep(0)
                ids = context.tokens.active
                numbers = np.array([ids[0], len(ids), 0.1], dtype=np.float32)
                yield [EmbeddingsGenerationOutput(numbers)], 0
            except BaseException:
                self.cancel(request_id)
                raise
            finally:
                self.streams -= 1

        return chunks()


def configure(folder: Path, **flags: Any) -> PipelineConfig:
    """Returns what ``max serve --model folder`` on a CPU makes of its flags."""
    return make_pipeline_config(folder, **{"max_batch_size": 1} | flags)


class Routes:
    """A server without a model.

    Attributes:
        tokenizer: As MAX's registry makes it.
        worker: What answers.
    """

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.config = configure(folder, **flags)
        task = flags.get("task", PipelineTask.TEXT_GENERATION)
        self.tokenizer: Any = PIPELINE_REGISTRY.retrieve_tokenizer(
            self.config, task=task
        )
        embeds = task == PipelineTask.EMBEDDINGS_GENERATION
        self.worker = EmbeddingPlayback() if embeds else Playback()
        parser = self.config.runtime.reasoning_parser
        # As MAX's server does: a grammar waits for the end of thinking.
        _apply_thinking_region(self.tokenizer, parser)
        app = FastAPI()
        app.include_router(openai_routes.router)
        register_request(app)
        app.state.pipeline = TokenGeneratorPipeline(
            model_name="m",
            tokenizer=self.tokenizer,
            model_worker=self.worker,
            reasoning_parser_name=parser,
        )
        app.state.pipeline_config = self.config
        app.state.settings = Settings()
        app.state.task = task
        self._app = app

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Sends a request; an exception that MAX lets through is a 500."""
        # ASCII, as JSON may hold half a surrogate pair and UTF-8 not.
        return self.post_text(path, json.dumps({"model": "m"} | body))

    def post_text(self, path: str, body: str | bytes) -> httpx.Response:
        """Sends a request's body as it is."""
        self.worker.asked = None

        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as c:
                return await c.post(f"/v1/{path}", content=body)

        return _LOOP.run(post())

    def complete(self, prompt: Any, **body: Any) -> httpx.Response:
        """Posts a text completion request."""
        return self.post("completions", prompt=prompt, **body)

    def chat(self, **body: Any) -> httpx.Response:
        """Posts a chat request."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.post("chat/completions", **{"messages": messages} | body)

    def ids(self, text: str) -> list[int]:
        """Text with control tokens as ids."""
        return self.tokenizer.delegate.encode(text, add_special_tokens=False)

    @property
    def context(self) -> Any:
        """What the worker was sent with the last request."""
        return self.worker.asked

    @property
    def prompt_ids(self) -> list[int]:
        """The ids of the last prompt."""
        return self.context.tokens.prompt.tolist()

    @property
    def prompt(self) -> str:
        """The last prompt, with its control tokens."""
        return self.tokenizer.delegate.decode(self.prompt_ids)

    def ask(
        self, answer: str = "Hi.", at_a_time: int = 1, **body: Any
    ) -> httpx.Response:
        """Posts a chat request that the model answers with ``answer``."""
        self.worker.answer = [*self.ids(answer), EOS]
        self.worker.at_a_time = at_a_time
        return self.chat(**body)

    def answer(self, answer: str, **body: Any) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        response = self.ask(answer, **body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def streamed(self, answer: str, **body: Any) -> dict[str, Any]:
        """The same, put together from a stream as a client does it."""
        response = self.ask(answer, stream=True, **body)
        assert response.status_code == 200, response.text
        return joined(response.text)


def joined(events: str) -> dict[str, Any]:
    """Returns the choice that a chat's stream of events adds up to."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    finish = None
    for line in events.splitlines():
        if not line.startswith("data:") or "[DONE]" in line:
            continue
        (choice,) = json.loads(line.removeprefix("data:"))["choices"]
        delta, finish = choice["delta"], choice.get("finish_reason") or finish
        message["content"] += delta.get("content") or ""
        message["reasoning"] += delta.get("reasoning") or ""
        for part in delta.get("tool_calls") or []:
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": part["id"], "function": {}})
            function = message["tool_calls"][part["index"]]["function"]
            for key, text in part["function"].items():
                function[key] = function.get(key, "") + (text or "")
    return {"message": message, "finish_reason": finish}
