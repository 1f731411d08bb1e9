"""Our own handler of ``/v1/embeddings``, in place of MAX's.

MAX 26.7 drops ``dimensions`` and ``encoding_format``, counts no tokens, and
answers a text that is too long with a 500.
"""

from __future__ import annotations

import asyncio
import base64
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines.context.exceptions import InputError
from max.pipelines.modeling.types import RequestID, TextGenerationRequest
from pydantic import ValidationError

PATH = "/v1/embeddings"


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
        embedded = await asyncio.gather(
            *(pipeline.encode(prompt) for prompt in prompts)
        )
    except (InputError, ValidationError) as error:
        raise routes.HTTPException(status_code=400, detail=str(error)) from error
    finally:
        elapsed = request.state.request_timer.elapsed_ms
        routes.record_request_end(request.url.path, elapsed)
    encode = _in_base64 if body.encoding_format == "base64" else _in_numbers
    data = [
        {"object": "embedding", "index": i, "embedding": encode(output.embeddings)}
        for i, output in enumerate(embedded)
    ]
    tokens = sum(len(prompt.prompt) for prompt in prompts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return routes.JSONResponse(
        {"object": "list", "data": data, "model": body.model, "usage": usage}
    )


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


def _in_numbers(embedding: npt.NDArray[np.float32]) -> list[float]:
    return embedding.tolist()


def _in_base64(embedding: npt.NDArray[np.float32]) -> str:
    """The numbers as OpenAI's clients read them: little-endian float32."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
