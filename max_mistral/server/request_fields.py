"""Fields of a request that MAX 26.7 would drop without a word.

A field that asks for what the server does not do raises MAX's ``InputError``,
which its routes answer with a 400 and the sentence. What only labels a request
(``user``, ``metadata``, ``store``) passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max.pipelines.context import SamplingParams
from max.pipelines.context.exceptions import InputError
from max.pipelines.lib import PipelineConfig
from max.pipelines.modeling.types import PipelineTask

from ..errors import shown

# The value of each that asks for nothing.
_PENALTIES = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1}

# A request's field, and what MAX's SamplingParams calls it.
_SAMPLING = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", *_PENALTIES)},
    # MAX copies the first of the two over the other.
    **{"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens"},
    **{"min_tokens": "min_new_tokens"},
}


# As many texts as OpenAI takes.
MOST_TEXTS = 2048


def check_task(body: Any, task: PipelineTask) -> None:
    """Raises ``InputError`` if a server has another task than the route.

    Args:
        body: MAX's pydantic model of a request.
        task: The server's.
    """
    wants_embeddings = hasattr(body, "input")
    embeds = task == PipelineTask.EMBEDDINGS_GENERATION
    if embeds and not wants_embeddings:
        raise InputError(
            "this server makes embeddings and generates no text: use /v1/embeddings, "
            "or start it without --task embeddings_generation."
        )
    if wants_embeddings and not embeds:
        raise InputError(
            "this server generates text and makes no embeddings: start one with "
            "--task embeddings_generation."
        )


def check_embedding_fields(body: Any) -> None:
    """Checks a request for embeddings.

    Raises:
        InputError: (a ``ValueError``) that names the field.
    """
    if body.dimensions is not None:
        raise InputError(
            f"dimensions is {body.dimensions}, but an embedding is as long as the "
            "model makes it; leave it out."
        )
    texts = as_prompts(body.input)
    if not texts or not all(texts):
        raise InputError(
            "input is empty or has an empty text; give each at least one token."
        )
    if len(texts) > MOST_TEXTS:
        raise InputError(
            f"input has {len(texts)} texts, but a request may have {MOST_TEXTS}: send "
            "several."
        )


def as_prompts(given: Any) -> list[Any]:
    """Returns a prompt, a list of ids or a list of such as a list of them."""
    alone = isinstance(given, str) or (given and isinstance(given[0], int))
    return [given] if alone else given


def check_fields(body: Any, config: PipelineConfig) -> None:
    """Checks what chats and completions have in common.

    Args:
        body: MAX's pydantic model of a request.
        config: The server's.

    Raises:
        InputError: (a ``ValueError``) that names the field, and the flag of
            ``max serve`` that it needs.
    """
    for field in ("n", "best_of"):
        value = getattr(body, field, None)
        if value not in (None, 1):
            raise InputError(
                f"{field} is {value}, but a request gets one answer: leave it out, "
                "or send the request several times."
            )
    thinking = body.thinking_temperature
    if thinking not in (None, body.temperature):
        raise InputError(
            f"thinking_temperature is {thinking}, but thinking is sampled as the "
            "answer is; leave it out."
        )
    if body.logit_bias:
        raise InputError("logit_bias is not supported; leave it out.")
    for field in ("max_tokens", "exclude"):
        if body.reasoning is not None and getattr(body.reasoning, field):
            raise InputError(f"reasoning.{field} is not supported; leave it out.")
    _check_sampling(body)
    for field in ("max_completion_tokens", "max_tokens"):
        if getattr(body, field, None) == 0:
            raise InputError(f"{field} is 0, but an answer has one token or more.")
    if not config.sampling.enable_penalties:
        for field, nothing in _PENALTIES.items():
            _refuse_without_flag(body, field, nothing, "--enable-penalties")
    if not config.sampling.enable_min_tokens:
        _refuse_without_flag(body, "min_tokens", 0, "--enable-min-tokens")


def _check_sampling(body: Any) -> None:
    """Says in which field a number is that MAX's sampler does not take."""
    for field, name in _SAMPLING.items():
        value = getattr(body, field, None)
        if value is not None:
            try:
                SamplingParams(**{name: value})
            except ValueError as error:
                raise InputError(str(error).replace(name, field)) from error


def _refuse_without_flag(body: Any, field: str, nothing: float, flag: str) -> None:
    value = getattr(body, field)
    if value not in (None, nothing):
        raise InputError(
            f"{field} is {value}, but this server was started without {flag}; leave "
            "it out or start the server with it."
        )


def check_chat_fields(body: Any) -> None:
    """Checks what only chats have.

    Raises:
        InputError: (a ``ValueError``) that names the field.
    """
    _check_response_format(body.response_format)
    if body.top_logprobs and not body.logprobs:
        raise InputError("top_logprobs needs logprobs: true.")
    for field in ("audio", "moderation", "web_search_options"):
        if getattr(body, field) is not None:
            raise InputError(f"{field} is not supported; leave it out.")
    if not body.reasoning_split:
        raise InputError(
            "reasoning_split is false, but a chat's thinking is always apart; leave it "
            "out."
        )
    if set(body.modalities or ()) - {"text"}:
        raise InputError(
            f"modalities is {shown(body.modalities)}, but an answer is text only; "
            "leave it out."
        )


def _check_response_format(found: Mapping[str, Any] | None) -> None:
    """Says what is missing; MAX takes a schema that is left out for any JSON."""
    if found and "type" not in found:
        raise InputError(
            "response_format has no type; give text, json_object or json_schema."
        )
    if found and found["type"] == "json_schema" and not found.get("json_schema"):
        raise InputError(
            "response_format has the type json_schema, but no json_schema; give one, "
            "or the type json_object."
        )


def check_completion_fields(body: Any, config: PipelineConfig) -> None:
    """Checks what only text completions have.

    Raises:
        InputError: (a ``ValueError``) that names the field.
    """
    if not config.model.enable_echo:
        _refuse_without_flag(body, "echo", False, "--enable-echo")
    if body.echo and body.logprobs is None:
        raise InputError(
            "echo gives the log probabilities of the prompt, so it needs logprobs."
        )
    prompts = as_prompts(body.prompt)
    if not prompts:
        raise InputError("prompt is empty; give a text or a list of token ids.")
    if len(prompts) > MOST_TEXTS:
        raise InputError(
            f"prompt has {len(prompts)} prompts, but a request may have {MOST_TEXTS}: "
            "send several."
        )
    if body.stream and len(prompts) > 1:
        raise InputError(
            f"prompt has {len(prompts)} prompts, but a stream answers one: send each "
            "in a request of its own, or without stream."
        )
    if body.suffix is None:
        return
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("suffix needs a prompt of text, not of token ids.")
    if body.echo:
        raise InputError("suffix and echo do not go together; leave one out.")
