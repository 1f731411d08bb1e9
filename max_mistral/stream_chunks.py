"""What each chunk of a streamed chat has to have, and MAX 26.7 leaves out.

MAX leaves out all that is null. OpenAI's ``finish_reason`` is null in every chunk but
the last, and Mistral's clients refuse a chunk without it.
"""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, create_model, model_serializer


def hook_chunks(routes: Any) -> None:
    """Makes MAX's chat routes write ``finish_reason`` in each chunk."""

    class Choice(routes.ChatCompletionStreamResponseChoice):
        @model_serializer(mode="wrap")
        def _with_finish_reason(
            self, handler: SerializerFunctionWrapHandler
        ) -> dict[str, Any]:
            return handler(self) | {"finish_reason": self.finish_reason}

    whole = routes.CreateChatCompletionStreamResponse
    routes.ChatCompletionStreamResponseChoice = Choice
    routes.CreateChatCompletionStreamResponse = create_model(
        whole.__name__, __base__=whole, choices=(list[Choice], ...)
    )
