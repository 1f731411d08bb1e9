"""The tokenizer of every architecture: MAX's own, for clients that mean harm."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from max.pipelines.context import TextContext
from max.pipelines.context.eos_tracking import EOSTracker
from max.pipelines.context.exceptions import InputError, PromptTooLongError
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib._chat_encoder import load_chat_encoder
from max.pipelines.lib.tokenizer import (
    resolve_eos_token_ids,
    run_with_default_executor,
)
from max.pipelines.modeling.types import (
    TextGenerationRequest,
    TextGenerationRequestMessage,
    TextGenerationRequestTool,
)
from typing_extensions import override

from .chat import ChatTokens, contents
from .fill_in import encode_fim
from .hf_tokenizer import load_fast, vocab_size
from .mistral_common_chat import load_chat
from .server.request_limits import (
    bounded_sampling,
    check_template_names,
    check_template_options,
    check_token_ids,
    with_effort,
)
from .server.routes import hook_routes
from .server.stop_strings import ends_at_stops
from .workarounds.console import print_whole_characters, printed

logger = logging.getLogger("max.pipelines")


class MistralTokenizer(ChatTokens):
    """Text to token ids and back, and a request to a context.

    Refuses, with an error that MAX's routes turn into a 400, what would end
    the model worker or run in it: token ids that the model does not have, an
    empty prompt, sampling parameters that overflow, and a client's own chat
    template.

    Args:
        model_path: A folder or the name of a repository.
        pipeline_config: What the user asked for.
        revision: The repository's revision.
        max_length: The longest sequence in tokens.
        trust_remote_code: Whether the repository's own Python may run.
        enable_llama_whitespace_fix: Whether a token that is decoded alone
            keeps its leading space. MAX asks for it only for its own
            ``TextTokenizer``.
        chat_template: The text of ``--chat-template``.

    Raises:
        UserError: (a ``ValueError``) if there is no tokenizer, or it has ids
            that the model does not.
    """

    # In place of TextTokenizer's constructor, which loads AutoTokenizer's
    # choice: that depends on whether mistral-common is installed.
    def __init__(
        self,
        model_path: str,
        pipeline_config: PipelineConfig | None,
        *,
        revision: str | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        enable_llama_whitespace_fix: bool = True,
        chat_template: str | None = None,
        **unused_kwargs: Any,
    ) -> None:
        self.model_path = model_path
        self.delegate = load_fast(model_path, revision, max_length, trust_remote_code)
        self._custom_template_provided = chat_template is not None
        self._chat_template = chat_template
        if chat_template is not None:
            self.delegate.chat_template = chat_template
        self.max_length = max_length or self.delegate.model_max_length

        # A template that the user gives is what the user wants.
        self._chat = (
            load_chat(model_path, revision, self.delegate)
            if chat_template is None
            else None
        )

        encoder = pipeline_config.tokenizer_impl if pipeline_config else None
        self._chat_encoder = load_chat_encoder(
            encoder, self.delegate, model_path, revision
        )
        self._chat_encoder_outcomes: Counter[str] = Counter()
        self._chat_encoder_failed = False

        self._enable_llama_whitespace_fix = (
            enable_llama_whitespace_fix and self._strips_leading_whitespace
        )
        (
            self._llama_whitespace_fix_dummy_token_id,
            self._llama_whitespace_fix_dummy_token_len,
        ) = self._llama_whitespace_fix_dummy_token

        self._vocab_size = vocab_size(self.delegate, pipeline_config, model_path)
        eos = resolve_eos_token_ids(self.delegate.eos_token_id, pipeline_config)
        self._eos_token_ids = {i for i in eos if 0 <= i < self._vocab_size}
        self._unreachable = frozenset(eos - self._eos_token_ids)
        if self._unreachable:
            logger.warning(
                "%s stops at token ids that the model does not have, which are "
                "left out: %s",
                model_path,
                sorted(self._unreachable),
            )
        self.set_up_chat(pipeline_config)
        hook_routes()
        print_whole_characters()

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Pickles, for the worker, without what only makes contexts."""
        return super().__getstate__() | {"_chat": None}

    @property
    @override
    def _llama_whitespace_fix_dummy_token(self) -> tuple[int, int]:
        """The token that a single one is decoded behind, and its text's length.

        MAX's own, 33, is a control token in the vocabularies of 32,768: it is skipped
        where log-probabilities are decoded, and with it as much of the token itself.
        """
        if not self._enable_llama_whitespace_fix:
            return 0, 0
        letter = self.delegate.encode("A", add_special_tokens=False)[-1]
        return letter, len(self.delegate.decode([letter]))

    @property
    def uses_mistral_common(self) -> bool:
        """Whether mistral-common encodes chats, and no template."""
        return self._chat is not None

    @cached_property
    def tokenizer_vocab_size(self) -> int:
        """How many tokens the model has.

        MAX ends the worker when the model emits an id from here on, so the
        model's padding counts, which stands for no text.
        """
        return self._vocab_size

    @override
    async def encode(
        self, prompt: str | Sequence[int], add_special_tokens: bool = True
    ) -> npt.NDArray[np.integer[Any]]:
        """Returns the ids of a text, or ids themselves: int64 ``[tokens]``.

        Raises:
            InputError: (a ``ValueError``) if an id is not in the model's
                vocabulary, or there are too many.
        """
        if not isinstance(prompt, str):
            if self.max_length and len(prompt) > self.max_length:
                raise PromptTooLongError(len(prompt), self.max_length)
            check_token_ids(prompt, self._vocab_size)
        return await super().encode(prompt, add_special_tokens)

    @override
    async def decode(
        self, encoded: npt.NDArray[np.integer[Any]] | Sequence[int] | int, **kwargs: Any
    ) -> str:
        """Returns the text of ids, or what they add to the answer that is printed.

        Args:
            encoded: int64 ``[tokens]``, or one id.
            **kwargs: As a Hugging Face tokenizer's ``decode`` takes them.
        """
        going_on = printed.get()
        if going_on is not None:
            return await going_on.decode(np.atleast_1d(encoded).tolist())
        text: str = await super().decode(encoded, **kwargs)
        return text

    def encode_fim(self, prompt: str, suffix: str) -> list[int] | None:
        """Returns the ids after which the model fills in between two texts.

        ``None`` where the vocabulary has no tokens for it.
        """
        return encode_fim(prompt, suffix, self.delegate, self._chat)

    @override
    def apply_chat_template(
        self,
        messages: list[TextGenerationRequestMessage],
        tools: list[TextGenerationRequestTool] | None,
        **chat_template_options: Any,
    ) -> str:
        """Returns the messages as the chat template writes them.

        Raises:
            InputError: (a ``ValueError``) if there is no template, it refuses
                the messages, or a client may not set one of the options.
        """
        try:
            template = self.delegate.get_chat_template(
                self._chat_template, cast(list[dict[str, Any]] | None, tools)
            )
        except ValueError as error:
            raise InputError(
                "this model has no chat template: use /v1/completions, or start "
                "the server with --chat-template."
            ) from error
        special = self.delegate.special_tokens_map
        check_template_options(chat_template_options, template, special)
        chat_template_options = with_effort(chat_template_options, template)
        try:
            return super().apply_chat_template(messages, tools, **chat_template_options)
        except InputError:
            raise
        # A template is a program: what a message makes it do is a wrong message.
        except Exception as error:
            reason = error.__cause__ or error
            raise InputError(
                f"the chat template refuses these messages: {reason}"
            ) from error

    @override
    async def _generate_prompt_and_token_ids(
        self,
        prompt: Sequence[int] | str | None,
        messages: list[TextGenerationRequestMessage],
        tools: list[TextGenerationRequestTool] | None = None,
        **chat_template_options: Any,
    ) -> tuple[str | list[int], npt.NDArray[np.integer[Any]]]:
        chat = self._chat
        if prompt is None and chat is not None:
            found = await run_with_default_executor(
                chat.encode, messages, tools, contents.get(), **chat_template_options
            )
            # The same bounds as for ids from a client.
            return found, await self.encode(found)
        text, ids = await super()._generate_prompt_and_token_ids(
            prompt, messages, tools, **chat_template_options
        )
        if len(ids) == 0:
            raise InputError("the prompt is empty; give at least one token.")
        return text, ids

    @override
    async def create_eos_tracker(self, request: TextGenerationRequest) -> EOSTracker:
        """Returns what ends a request's answer in the worker.

        That looks for the tokens of a stop string in thinking too, where a chat's text
        is not to be searched. With ``ignore_eos`` MAX drops ``stop_token_ids`` too.
        Here they stay, but for the model's own ends, which they are where a client
        names none.
        """
        tracker = await super().create_eos_tracker(request)
        params = request.sampling_params
        ends, sequences = tracker.eos_token_ids, tracker.eos_sequences
        if params.ignore_eos:
            ends = set(params.stop_token_ids or ()) - self._eos_token_ids
        if ends_at_stops.get() and self.reasoning_start_token_id != -1:
            sequences = []
        return EOSTracker(
            eos_token_ids=ends,
            eos_sequences=sequences,
            eos_stop_strings=tracker.eos_stop_strings,
        )

    @override
    async def new_context(self, request: TextGenerationRequest) -> TextContext:
        """Returns what the worker needs of a request.

        Raises:
            InputError: (a ``ValueError``) if the model cannot do it.
        """
        check_template_names(request.chat_template_options or {})
        changes: dict[str, Any] = {
            "sampling_params": bounded_sampling(
                request.sampling_params,
                self._vocab_size,
                self.max_length,
                self._unreachable,
            )
        }
        if request.echo and request.logprobs:
            # A prompt token that comes from the prefix cache gets no logits.
            changes["cache_salt"] = secrets.token_hex(16)
        try:
            return await super().new_context(replace(request, **changes))
        except InputError:
            raise
        except ValueError as error:  # which MAX's routes answer without its text
            raise InputError(str(error)) from error
