"""Every place where MAX's OpenAI routes are changed, and why.

MAX 26.7 asks an architecture for its tokenizer and its parsers; what a route
does before it has them, or with fields that it never passes on, is its own.
Two functions and four methods of ``max.serve.router.openai_routes`` and a method of
``max.serve.pipelines.llm.TokenGeneratorPipeline`` are replaced, and the handler
of ``/v1/embeddings`` by that of :mod:`.embedding_route`; :mod:`.answer_shapes` adds to
what is answered:

``_parse_openai_request_body``, with which all routes begin
    Our part checks each body: JSON that cannot be read, an unknown model, a
    number out of its range and an empty prompt are answered in words (else
    "Value error." or a 500); what MAX drops is honoured (``suffix``,
    ``parallel_tool_calls``, a 0 that is not "none") or refused by name; a message's
    null means nothing, an empty list of tools none, and ``response_format`` "text" no
    grammar; a completion's thinking stays in its text; fields of Mistral's
    own API are read (:mod:`.mistral_fields`).
``_content_before_tool_call_marker``, of an answer whose calls are all broken
    MAX keeps what stood before the marker; the parser knows the rest too.
``next_token_chunk``, from which both routes read the answer
    Where the request has stop strings, it ends before the first of them.
``complete``, which makes the answer of a chat that is not streamed
    Where an answer is all thinking, that stays thinking, as in a stream.
``complete``, which makes those of a completion that is not streamed
    Where one of several prompts fails, no one waits for the others: they end too.
``_log_tool_call_conformance``, ``_log_response_format_conformance``
    For its log MAX holds answers against the client's schemas with ``jsonschema``,
    between the answers of all: it fetches what a ``$ref`` names, from a network or
    a file without an end, and a pattern can take hours. Nothing is checked or
    logged now.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import sys
from dataclasses import replace
from typing import Any

from max.pipelines.context.exceptions import InputError
from pydantic import ValidationError

from ..chat import read_messages, read_tool_choice
from .answer_shapes import begin_answer, hook_answers
from .embedding_route import hook_embeddings
from .request_fields import (
    check_chat_fields,
    check_completion_fields,
    check_embedding_fields,
    check_fields,
    check_task,
)
from .request_json import RequestModel, first_words
from .stop_strings import TokenByToken, ends_at_stops, until_stop
from .suffix import filled_in


def hook_routes() -> None:
    """Changes MAX's routes, once; where they are not loaded there is no server."""
    routes: Any = sys.modules.get("max.serve.router.openai_routes")
    if routes is None or hasattr(routes._parse_openai_request_body, "checks_bodies"):
        return
    parse = routes._parse_openai_request_body
    cut = routes._content_before_tool_call_marker

    @functools.wraps(parse)
    async def parse_and_check(request: Any, request_id: str, model: Any) -> Any:
        reads = RequestModel(model)
        try:
            body = await parse(request, request_id, reads)
        except InputError:  # has words of its own
            raise
        except ValidationError as error:
            raise InputError(first_words(error)) from error
        except RecursionError:
            message = "the request's JSON has too many levels to be read."
            raise InputError(message) from None
        except (TypeError, ValueError) as error:  # a wrong type, or no JSON
            raise InputError(f"the request's JSON cannot be read: {error}") from error
        try:
            pipeline = routes.get_pipeline(request, body.model)
        except ValueError as error:
            raise InputError(
                f"model is {body.model[:256]!r}, which is not served here; "
                "GET /v1/models says what is."
            ) from error
        return await _checked(request, body, pipeline.tokenizer, reads.given)

    @functools.wraps(cut)
    def content_without_calls(parser: Any, response: str) -> str:
        own = getattr(parser, "content_without_calls", None)
        return own(response) if own else cut(parser, response)

    texts: Any = routes.OpenAICompletionResponseGenerator
    texts.complete = _ending_together(texts.complete)
    answers: Any = routes.OpenAIChatResponseGenerator
    answers.complete = _keeping_thinking(answers.complete)
    answers._log_tool_call_conformance = _log_nothing
    answers._log_response_format_conformance = _log_nothing
    pipelines: Any = routes.TokenGeneratorPipeline
    pipelines.next_token_chunk = _ending_at_stops(pipelines.next_token_chunk)
    parse_and_check.checks_bodies = True  # type: ignore[attr-defined]
    routes._parse_openai_request_body = parse_and_check
    routes._content_before_tool_call_marker = content_without_calls
    hook_embeddings(routes)
    hook_answers(routes)


def _keeping_thinking(complete: Any) -> Any:
    """Returns MAX's method, but that it takes no thinking for the answer's text."""

    @functools.wraps(complete)
    async def whole(answers: Any, requests: Any) -> Any:
        thinking: list[str] = []
        asked = answers.pipeline

        async def all_tokens(request: Any) -> Any:
            chunks = await asked.all_tokens(request)
            thinking.extend(chunk.decoded_reasoning_tokens or "" for chunk in chunks)
            return [replace(chunk, decoded_reasoning_tokens=None) for chunk in chunks]

        if not answers.fold_reasoning_into_content:
            answers.pipeline = copy.copy(asked)
            answers.pipeline.all_tokens = all_tokens
        response = await complete(answers, requests)
        if any(thinking):
            for choice in response.choices:
                setattr(choice.message, answers._reasoning_field, "".join(thinking))
        return response

    return whole


def _ending_together(complete: Any) -> Any:
    """Returns MAX's method, but that it leaves no prompt behind where one fails."""

    @functools.wraps(complete)
    async def whole(answers: Any, requests: Any) -> Any:
        tasks: list[asyncio.Task[Any]] = []
        asked = answers.pipeline

        async def all_tokens(request: Any, **options: Any) -> Any:
            task = asyncio.create_task(asked.all_tokens(request, **options))
            tasks.append(task)
            return await task

        answers.pipeline = copy.copy(asked)
        answers.pipeline.all_tokens = all_tokens
        try:
            return await complete(answers, requests)
        except BaseException:
            # MAX tells the worker to cancel the request of a task that is cancelled.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    return whole


def _log_nothing(*_: object, **__: object) -> None:
    pass


def _ending_at_stops(next_token_chunk: Any) -> Any:
    """Returns MAX's method, but that what it returns ends before a stop string.

    ``MAX_SERVE_STREAM_MIN_CHUNK_TOKENS`` does not count for such an answer, which
    comes a token at a time.
    """

    @functools.wraps(next_token_chunk)
    async def chunks(pipeline: Any, request: Any, **options: Any) -> Any:
        stops = request.sampling_params.stop
        if not stops:
            return await next_token_chunk(pipeline, request, **options)
        ends_at_stops.set(True)
        worker = TokenByToken(pipeline.model_worker)
        pipeline = copy.copy(pipeline)
        pipeline.model_worker = worker
        pipeline._min_chunk_tokens = 1
        answer = await next_token_chunk(pipeline, request, **options)
        return until_stop(answer, worker, stops)

    return chunks


async def _checked(request: Any, body: Any, tokenizer: Any, given: Any) -> Any:
    """Returns a body as MAX's route may go on with it.

    Args:
        request: The HTTP request.
        body: MAX's pydantic model of it.
        tokenizer: A ``MistralTokenizer``.
        given: Its JSON, as the model has read it.

    Raises:
        InputError: (a ``ValueError``) if it asks for what cannot be done.
    """
    config = request.app.state.pipeline_config
    check_task(body, request.app.state.task)
    if hasattr(body, "input"):
        check_embedding_fields(body)
        return body
    check_fields(body, config)
    others = body.top_logprobs if hasattr(body, "messages") else body.logprobs
    begin_answer(stream=bool(body.stream), alternatives=bool(others))
    # Where MAX takes 0 for none, what means the same.
    if body.seed == 0:
        body.seed = 2**64
    if hasattr(body, "messages"):
        check_chat_fields(body)
        if body.response_format and body.response_format["type"] == "text":
            body.response_format = None
        # An empty list offers none, but its iterator is one to MAX.
        if not given.get("tools"):
            body.tools = None
        body.top_logprobs = body.top_logprobs or None
        # Pydantic reads tools once only, and drops parts of messages.
        read_tool_choice(given)
        read_messages(
            given["messages"],
            body.messages,
            keeps_parts=tokenizer.uses_mistral_common,
            takes_unknown=config.runtime.allow_extra_request_fields,
        )
        return body
    check_completion_fields(body, config)
    # A completion has no field for thinking: it is text there, as with OpenAI.
    if "reasoning_split" not in body.model_fields_set:
        body.reasoning_split = False
    if body.logprobs == 0:
        body.logprobs = 1
    if body.suffix is not None:
        body.prompt = await filled_in(body, tokenizer)
    return body
