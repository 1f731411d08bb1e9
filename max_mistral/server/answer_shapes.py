"""What MAX 26.7's answers have to have beside what it writes.

- ``finish_reason`` in each chunk of a streamed chat, null in all but the last. MAX
  leaves out all that is null; Mistral's clients refuse a chunk without it.
- A null for the first token where ``echo`` gives the log-probabilities of a prompt,
  as nothing predicts it. OpenAI's API has it, and what reads them counts by it
  (lm-evaluation-harness). It comes from the worker as NaN; see
  ``workarounds/log_probabilities.py``.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from pydantic import SerializerFunctionWrapHandler, create_model, model_serializer


def hook_answers(routes: Any) -> None:
    """Replaces the pydantic models by which MAX's routes write answers."""
    routes.ChatCompletionStreamResponseChoice = _chat_choice(
        routes.ChatCompletionStreamResponseChoice
    )
    chat = routes.CreateChatCompletionStreamResponse
    routes.CreateChatCompletionStreamResponse = _with(
        chat, choices=list[routes.ChatCompletionStreamResponseChoice]
    )
    scores = _with(
        routes.CompletionLogprobs,
        token_logprobs=list[float | None],
        top_logprobs=list[dict[str, float] | None],
    )
    for choice, answer in (
        ("CompletionResponseChoice", "CreateCompletionResponse"),
        ("CompletionResponseStreamChoice", "CompletionStreamResponse"),
    ):
        ours = create_model(
            choice, __base__=getattr(routes, choice), logprobs=(scores | None, None)
        )
        setattr(routes, choice, ours)
        setattr(routes, answer, _with(getattr(routes, answer), choices=list[ours]))  # type: ignore[valid-type]
    process = routes._process_log_probabilities

    @functools.wraps(process)
    def with_nulls(outputs: Any) -> Any:
        found = process(outputs)
        known = [not math.isnan(score) for score in found.token_logprobs]

        def or_null(values: list[Any]) -> list[Any]:
            pairs = zip(values, known, strict=False)
            return [value if is_known else None for value, is_known in pairs]

        return scores(
            token_logprobs=or_null(found.token_logprobs),
            top_logprobs=or_null(found.top_logprobs),
        )

    routes._process_log_probabilities = with_nulls


def _with(model: Any, **types: Any) -> Any:
    fields: Any = {name: (kind, ...) for name, kind in types.items()}
    return create_model(model.__name__, __base__=model, **fields)


def _chat_choice(model: Any) -> Any:
    class Choice(model):
        @model_serializer(mode="wrap")
        def _with_finish_reason(
            self, handler: SerializerFunctionWrapHandler
        ) -> dict[str, Any]:
            return handler(self) | {"finish_reason": self.finish_reason}

    return Choice
