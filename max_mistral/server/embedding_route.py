"""Our own handler of ``/v1/embeddings``, in place of MAX's.

MAX 26.7 drops ``dimensions`` and ``encoding_format``, counts no tokens, answers a
text that is too long with a 500, gives its worker all of a request's texts at once,
and goes on with them when the client has left.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines.context.exceptions import InputError
from max.pipelines.modeling.types import RequestID, TextGenerationRequest
from pydantic import ValidationError

PATH = "/v1/embeddings"

# Texts of one request that the worker has at a time: it takes whoever comes first,
# and what it has it computes. Two batches of a GPU's.
AT_A_TIME = 64


def hook_embeddings(routes: Any) -> None:
    """Puts our handler in the place of MAX's.

    Args:
        routes: ``max.serve.router.openai_routes``, whose parser of bodies checks
            them.
    """
    router = routes.router
    router.routes[:] = [r for r in router.routes if getattr(r, "path", "") != PATH]
    handler = functools.partial(_create_embeddings, routes)
    router.add_route(PATH, handler, methods=["POST"])


async def _create_embeddings(routes: Any, request: Any) -> Any:
    """Answers a request; an ``HTTPException`` is a 400 with a sentence."""
    routes.record_request_start()
    try:
        body, pipeline, prompts = await _read(routes, request)
        async with routes.CancelGroup() as group:
            group.create_task(routes.raise_on_disconnect(request))
            embedded = await _embed(pipeline, prompts)
    except (InputError, ValidationError) as error:
        raise routes.HTTPException(status_code=400, detail=str(error)) from error
    finally:
        elapsed = request.state.request_timer.elapsed_ms
        routes.record_request_end(request.url.path, elapsed)
    encode = _in_base64 if body.encoding_format == "base64" else _in_numbers
    data = []
    for i, embedding in enumerate(embedded):
        item = {"object": "embedding", "index": i, "embedding": encode(embedding)}
        data.append(json.dumps(item, allow_nan=False))
        # Thousands of vectors take seconds to write; others come in between.
        await asyncio.sleep(0)
    tokens = sum(len(prompt.prompt) for prompt in prompts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    # OpenAI's API has no id here; Mistral's has, and its clients want it.
    name = f"embd-{request.state.request_id}"
    rest = json.dumps({"id": name, "model": body.model, "usage": usage})
    text = f'{{"object":"list","data":[{",".join(data)}],{rest[1:]}'
    return routes.Response(text, media_type="application/json")


async def _read(routes: Any, request: Any) -> tuple[Any, Any, list[Any]]:
    """Returns a request's body, who answers it, and each text as a request of ids.

    All texts are read before the first is embedded.

    Raises:
        InputError, ValidationError: (``ValueError``) naming what is wrong.
    """
    request_id = request.state.request_id
    body = await routes._parse_openai_request_body(
        request, request_id, routes.CreateEmbeddingRequest
    )
    pipeline = routes.get_pipeline(request, body.model)
    texts = [
        (await pipeline.tokenizer.encode(text)).tolist()
        for text in routes.get_prompts_from_openai_request(body.input)
    ]
    return (
        body,
        pipeline,
        [
            TextGenerationRequest(
                request_id=RequestID(f"{request_id}_{i}"),
                model_name=body.model,
                prompt=ids,
                timestamp_ns=request.state.request_timer.start_ns,
                request_path=request.url.path,
            )
            for i, ids in enumerate(texts)
        ],
    )


async def _embed(
    pipeline: Any, prompts: Sequence[Any]
) -> list[npt.NDArray[np.float32]]:
    """Returns each text's embedding; the worker has ``AT_A_TIME`` of them at most."""
    pipeline = copy.copy(pipeline)
    pipeline.model_worker = _ToTheEnd(pipeline.model_worker)
    found: list[Any] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))

    async def embed_next() -> None:
        for i, prompt in waiting:
            found[i] = (await pipeline.encode(prompt)).embeddings

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_A_TIME, len(prompts))):
                group.create_task(embed_next())
    except ExceptionGroup as several:
        # Of one kind, as that the worker's queue is full.
        raise several.exceptions[0] from None
    return found


class _ToTheEnd:
    """A worker whose answers are read whole.

    MAX's pipeline leaves an answer after its one chunk, and MAX then tells the worker
    to cancel it, which no worker that embeds reads: they pile up in a queue. So do
    those of texts whose client has left, ``AT_A_TIME`` at most.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    async def stream(self, request_id: RequestID, context: Any) -> AsyncIterator[Any]:
        """Returns a worker's chunks, once all have come."""
        answer = await self._worker.stream(request_id, context)
        chunks = [chunk async for chunk in answer]

        async def again() -> AsyncIterator[Any]:
            for chunk in chunks:
                yield chunk

        return again()


def _in_numbers(embedding: npt.NDArray[np.float32]) -> list[float]:
    return embedding.tolist()


def _in_base64(embedding: npt.NDArray[np.float32]) -> str:
    """The numbers as OpenAI's clients read them: little-endian float32."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
