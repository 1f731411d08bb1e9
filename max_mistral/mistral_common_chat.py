"""Chats as mistral-common encodes them, where a checkpoint has its file.

A Jinja template writes text, in which a user can spell a control token, and
has no say in how a tool's JSON is written; Mistral's models are trained on
the ids that mistral-common makes. It adds no system prompt of its own, as the
templates of some checkpoints do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from max.pipelines.context.exceptions import InputError
from max.pipelines.lib.tokenizer import replace_unpaired_surrogates
from max.pipelines.modeling.types import (
    TextGenerationRequestMessage,
    TextGenerationRequestTool,
)
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokens, TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import PreTrainedTokenizerFast

from .chat.common_messages import as_sent
from .hf_files import find_file
from .server.request_limits import asked_effort
from .tekken import check_pattern
from .unicode import is_unicode

logger = logging.getLogger("max.pipelines")

# The newest first. A plain tokenizer.model is of version 1.
MISTRAL_TOKENIZERS = (
    "tekken.json",
    *(f"tokenizer.model.{v}" for v in ("v7m1", "v7", "v3", "v2", "v1")),
    "tokenizer.model",
)

# As transformers takes them for a template; the others are MAX's, beside the
# reasoning effort that they follow from.
_OPTIONS = {
    *("reasoning_effort", "enable_thinking", "thinking"),
    *("add_generation_prompt", "continue_final_message"),
}

# Both encode these alike if they are of the same vocabulary.
_PROBE = "Let's try 12345: naïve façades — 日本語\n\n  x"


class MistralChat:
    """Messages and tools to token ids, as one version of mistral-common does.

    Args:
        path: A ``tekken.json`` or ``tokenizer.model*``.

    Raises:
        UserError: (a ``ValueError``) if a ``tekken.json`` cuts text by an
            expression that is not known. mistral-common's own errors are of any kind.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix == ".json":
            check_pattern(path)
        self._tokenizer: Any = MistralTokenizer.from_file(path)
        self.version: TokenizerVersion = self._tokenizer.version
        checks: Any = self._tokenizer._chat_completion_request_validator
        checks._validate_function = _without_schema(checks._validate_function)

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of plain text, in which nothing is a control token."""
        raw = self._tokenizer.instruct_tokenizer.tokenizer
        return raw.encode(text, bos=False, eos=False)

    @property
    def thinks(self) -> bool:
        """Whether an answer's thinking has a place in a prompt."""
        raw = self._tokenizer.instruct_tokenizer.tokenizer
        return self.version >= TokenizerVersion.v13 and raw.is_special(
            SpecialTokens.begin_think.value
        )

    @property
    def has_fim(self) -> bool:
        """Whether there are tokens to fill in between a prompt and a suffix."""
        raw = self._tokenizer.instruct_tokenizer.tokenizer
        return self.version > TokenizerVersion.v1 and all(
            raw.is_special(name.value)
            for name in (SpecialTokens.prefix, SpecialTokens.suffix)
        )

    def encode_fim(self, prompt: str, suffix: str) -> list[int]:
        """Returns the ids after which a model fills in between two texts."""
        request = FIMRequest(prompt=prompt, suffix=suffix)
        try:
            return list(self._tokenizer.encode_fim(request).tokens)
        except ValueError as error:  # tiktoken's, of a text that it cannot cut
            raise InputError(f"this suffix cannot be encoded: {error}") from error

    def encode(
        self,
        messages: Sequence[TextGenerationRequestMessage],
        tools: Sequence[TextGenerationRequestTool] | None,
        contents: Sequence[list[dict[str, Any]] | None] | None = None,
        /,
        **options: Any,
    ) -> list[int]:
        """Returns the ids of a chat.

        Args:
            messages: As MAX's routes make them of a request.
            tools: The functions that may be called.
            contents: Of each message the parts of its content, in place of those
                that MAX left in it, or ``None``; by default ``None`` for all.
            **options: A request's ``chat_template_kwargs``.

        Raises:
            InputError: (a ``ValueError``) if mistral-common refuses the chat,
                or there is no such option.
        """
        if tools and self.version == TokenizerVersion.v1:
            raise InputError("this model's chats have no tools; leave tools out.")
        if unknown := options.keys() - _OPTIONS:
            raise InputError(f"this model's chats have no option {min(unknown)!r}.")
        settings: dict[str, Any] = {}
        if (effort := self._effort(options)) is not None:
            settings["reasoning_effort"] = effort
        if "continue_final_message" in options:
            settings["continue_final_message"] = options["continue_final_message"]
        sent = as_sent(messages, contents, self.version, thinks=self.thinks)
        # Its errors share no base, and a message makes it raise others too.
        try:
            request = ChatCompletionRequest.from_openai(
                messages=_unicode(sent),
                tools=_unicode([dict(tool) for tool in tools]) if tools else None,
                **settings,
            )
            return list(self._tokenizer.encode_chat_completion(request).tokens)
        except Exception as error:
            raise InputError(f"this chat cannot be encoded: {error}") from error

    def _effort(self, options: dict[str, Any]) -> str | None:
        """What a request's fields of thinking say, as mistral-common takes it."""
        asked = asked_effort(options)
        if self.version.supports_model_settings:
            return asked
        effort: str | None = options.get("reasoning_effort")
        if asked == "high" and effort in (None, "none"):
            raise InputError(
                "no field turns this model's thinking on: leave thinking, reasoning "
                "and enable_thinking out. If it thinks, its system prompt says so."
            )
        # Where there are no efforts, "none" asks for nothing.
        return None if effort == "none" else effort


def _without_schema(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns mistral-common's check of a function, but for the function's schema.

    A prompt has that as text. jsonschema would compare the items of a list each with
    each, which takes hours, and refuse a pattern that Python's ``re`` cannot read.
    """
    return lambda function: check(function.model_copy(update={"parameters": {}}))


def _unicode(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns JSON without halves of surrogate pairs, which no tokenizer takes."""
    text = json.dumps(values, ensure_ascii=False)
    if is_unicode(text):
        return values
    found: list[dict[str, Any]] = json.loads(replace_unpaired_surrogates(text))
    return found


def load_chat(
    model_path: str,
    revision: str | None,
    delegate: PreTrainedTokenizerFast,
) -> MistralChat | None:
    """Returns how mistral-common encodes a checkpoint's chats, or ``None``.

    ``None`` where the checkpoint has no file of Mistral's, or one that is not
    of its chats: many are trained on from a Mistral with a template of their
    own, such as ChatML, or with added tokens, and keep the file.

    Args:
        model_path: A folder or the name of a repository.
        revision: The repository's revision.
        delegate: The checkpoint's tokenizer, with its chat template.
    """
    found = (find_file(model_path, name, revision) for name in MISTRAL_TOKENIZERS)
    path = next((path for path in found if path is not None), None)
    template = str(delegate.chat_template or "[INST]")
    if path is None or "[INST]" not in template or "<<SYS>>" in template:
        return None
    try:
        chat = MistralChat(path)
    # mistral-common raises any kind for a file that is not what it says.
    except Exception as error:
        logger.warning(
            "%s cannot be read (%s): chats are encoded with the chat template.",
            path,
            error,
        )
        return None
    same = chat.encode_text(_PROBE) == delegate.encode(_PROBE, add_special_tokens=False)
    # A tokenizer.model without a version in its name is taken for version 1.
    control = "[INST]" in delegate.get_vocab()
    if not same or control != (chat.version > TokenizerVersion.v1):
        logger.warning(
            "%s is not of the checkpoint's tokenizer.json: chats are encoded with "
            "the chat template.",
            path,
        )
        return None
    return chat
