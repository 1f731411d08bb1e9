"""MAX's real OpenAI routes before a worker that answers what a test chose.

What a client sends goes through MAX's server code and our tokenizer; no graph
is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context import GenerationStatus, TextContext, TextGenerationOutput
from max.pipelines.lib import PipelineConfig
from max.pipelines.modeling.types import PipelineTask
from max.serve.config import Settings
from max.serve.pipelines.llm import TokenGeneratorPipeline
from max.serve.request import register_request
from max.serve.router import openai_routes
from max.serve.worker_interface import ModelWorkerProxy

from workbench.runner import make_pipeline_config


class Worker(ModelWorkerProxy):
    """Plays ``answer`` back, a token at a time, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Sequence[int] = []
        self.asked: TextContext | None = None

    def cancel(self, request_id: Any) -> None:
        """Nothing runs."""

    async def stream(self, request_id: Any, context: Any) -> Any:
        """Returns a stream of chunks, as MAX's proxy of a process does."""
        # As on the way to a process: this is where some numbers do not fit.
        msgspec.msgpack.encode(context, enc_hook=lambda value: repr(value))
        self.asked = context

        async def chunks() -> Any:
            for i, token in enumerate(self.answer):
                done = i == len(self.answer) - 1
                status = (
                    GenerationStatus.END_OF_SEQUENCE
                    if done
                    else GenerationStatus.ACTIVE
                )
                output = TextGenerationOutput(
                    request_id=request_id, tokens=[token], final_status=status
                )
                yield [output], i

        return chunks()


def configure(folder: Path, **flags: Any) -> PipelineConfig:
    """Returns what ``max serve --model folder`` on a CPU makes of its flags."""
    return make_pipeline_config(folder, **{"max_batch_size": 1} | flags)


class Routes:
    """A server without a model."""

    def __init__(self, folder: Path, **flags: Any) -> None:
        config = configure(folder, **flags)
        self.tokenizer = PIPELINE_REGISTRY.retrieve_tokenizer(config)
        self.worker = Worker()
        app = FastAPI()
        app.include_router(openai_routes.router)
        register_request(app)
        app.state.pipeline = TokenGeneratorPipeline(
            model_name="m", tokenizer=self.tokenizer, model_worker=self.worker
        )
        app.state.pipeline_config = config
        app.state.settings = Settings()
        app.state.task = PipelineTask.TEXT_GENERATION
        self._app = app

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """Sends a request; an exception that MAX lets through is a 500."""
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            # ASCII, as JSON may hold half a surrogate pair and UTF-8 not.
            content = json.dumps({"model": "m"} | body)
            return await http.post(f"/v1/{path}", content=content)
