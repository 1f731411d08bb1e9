"""What MAX 26.7's answers have to have beside what it writes.

- ``finish_reason`` in each chunk of a streamed chat, null in all but the last. MAX
  leaves out all that is null; Mistral's clients refuse a chunk without it. The last
  is "stop" where no call is whole, as in an answer that is not streamed.
- ``role`` in the first chunk alone. MAX has it in each, and OpenAI's client joins a
  stream's texts: "assistantassistant".
- No ``logprobs`` where none were asked for. MAX has an object of empty lists.
- Of a completion's ``logprobs`` the ``tokens``, and ``text_offset``: where each begins
  in the text, with ``echo`` counted from the prompt's beginning. A token of part of a
  character counts as one.
- No ``bytes`` of a chat's token that is part of a character. MAX has those of U+FFFD,
  as which it decodes such a token.
- No alternatives where none were asked for (``top_logprobs`` of 0 or left out in a
  chat, ``logprobs: 0`` in a completion). MAX gives those of 1.
- A null for the first token where ``echo`` gives the log-probabilities of a prompt,
  as nothing predicts it. OpenAI's API has it, and what reads them counts by it
  (lm-evaluation-harness). It comes from the worker as NaN; see
  ``workarounds/log_probabilities.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic import SerializerFunctionWrapHandler, create_model, model_serializer

from ..chat.tool_parser import no_whole_call


@dataclass
class _Sent:
    """What a stream has sent so far."""

    role: bool = False
    characters: int = 0


_sent: ContextVar[_Sent | None] = ContextVar("sent", default=None)
_alternatives: ContextVar[bool] = ContextVar("alternatives", default=True)


def begin_answer(*, stream: bool, alternatives: bool) -> None:
    """Says that this task's request begins to be answered.

    Args:
        stream: Whether in chunks.
        alternatives: Whether log-probabilities have those of other tokens beside.
    """
    _sent.set(_Sent() if stream else None)
    _alternatives.set(alternatives)


def hook_answers(routes: Any) -> None:
    """Replaces the pydantic models by which MAX's routes write answers."""

    def put(name: str, answer: str, ours: Any) -> None:
        setattr(routes, name, ours)
        setattr(routes, answer, _with(getattr(routes, answer), choices=list[ours]))

    for name, answer, complete in (
        ("ChatCompletionResponseChoice", "CreateChatCompletionResponse", _whole),
        (
            "ChatCompletionStreamResponseChoice",
            "CreateChatCompletionStreamResponse",
            _chunk,
        ),
    ):
        put(name, answer, _choice(getattr(routes, name), complete))
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
        put(choice, answer, ours)
    process = routes._process_log_probabilities

    @functools.wraps(process)
    def with_nulls(outputs: Any) -> Any:
        found = process(outputs)
        if not found.token_logprobs:
            return None
        known = [not math.isnan(score) for score in found.token_logprobs]

        def or_null(values: list[Any]) -> list[Any]:
            pairs = zip(values, known, strict=False)
            return [value if is_known else None for value, is_known in pairs]

        tops = found.top_logprobs if _alternatives.get() else [{} for _ in known]
        tokens = [text for each in outputs for text in each.sampled_tokens or ()]
        sent = _sent.get() or _Sent()
        *offsets, sent.characters = accumulate(
            map(len, tokens), initial=sent.characters
        )
        return scores(
            tokens=tokens,
            token_logprobs=or_null(found.token_logprobs),
            top_logprobs=or_null(tops),
            text_offset=offsets,
        )

    routes._process_log_probabilities = with_nulls
    of_chat = routes._process_chat_log_probabilities

    @functools.wraps(of_chat)
    def as_asked(outputs: Any) -> Any:
        found = of_chat(outputs)
        for each in found.content:
            if not _alternatives.get():
                each.top_logprobs = []
            for one in (each, *each.top_logprobs):
                if "\ufffd" in one.token:
                    one.bytes = None
        return found

    routes._process_chat_log_probabilities = as_asked


def _with(model: Any, **types: Any) -> Any:
    fields: Any = {name: (kind, ...) for name, kind in types.items()}
    return create_model(model.__name__, __base__=model, **fields)


Dumped = dict[str, Any]


def _choice(model: Any, complete: Callable[[Any, Dumped], Dumped]) -> Any:
    """Returns a choice of MAX's that is dumped as ``complete`` makes it."""

    class Choice(model):
        @model_serializer(mode="wrap")
        def _as_openai(self, handler: SerializerFunctionWrapHandler) -> Dumped:
            # MAX's own serializer, in whose place this one is.
            return complete(self, model._drop_unset_token_ids(self, handler))

    return Choice


def _whole(choice: Any, found: Dumped) -> Dumped:
    has_scores = choice.logprobs is not None and choice.logprobs.content
    return found | ({} if has_scores else {"logprobs": None})


def _chunk(choice: Any, found: Dumped) -> Dumped:
    reason = choice.finish_reason
    if reason == "tool_calls" and no_whole_call.get():
        reason = "stop"
    found = found | {"finish_reason": reason}
    sent = _sent.get()
    if sent is not None and sent.role:
        found["delta"].pop("role", None)
    elif sent is not None:
        found["delta"]["role"] = "assistant"
        sent.role = True
    return found
