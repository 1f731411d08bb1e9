"""Thinking between ``[THINK]`` and ``[/THINK]``, told apart by token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from max.pipelines.lib.reasoning import register
from max.pipelines.modeling.types import (
    ParsedReasoningDelta,
    ReasoningParser,
    ReasoningSpan,
)

from .vocabulary import special_tokens

T = TypeVar("T")

START = "[THINK]"
END = "[/THINK]"
NAME = "mistral"
# The prompt's last turn begins after these: what stands before is closed.
_TURN_ENDS = ("[/INST]", "[/TOOL_RESULTS]", "[/SYSTEM_PROMPT]")

# What a token is.
_CONTENT, _THOUGHT, _MARK = "content", "thought", "mark"


@register(NAME)
class MistralReasoningParser(ReasoningParser):
    """Finds thinking in an answer's tokens; inert without the two tokens.

    Args:
        start: The id of ``[THINK]``, or None.
        end: The id of ``[/THINK]``, or None.
        calls: The id of ``[TOOL_CALLS]``, which ends thinking too, or None.
        turn_ends: Ids after which an earlier ``[THINK]`` in a prompt is over.
    """

    REASONING_START: ClassVar[str | None] = START
    REASONING_END: ClassVar[str | None] = END

    def __init__(
        self,
        start: int | None,
        end: int | None,
        calls: int | None = None,
        turn_ends: Sequence[int] = (),
    ) -> None:
        self._start = start
        self._end = end
        self._calls = calls
        self._turn_ends = frozenset(turn_ends)

    def stream(
        self, delta_token_ids: Sequence[int], is_currently_reasoning: bool = True
    ) -> ParsedReasoningDelta:
        """Returns where thinking stands in the next tokens, and if it goes on."""
        thinks = is_currently_reasoning and None not in (self._start, self._end)
        kinds = []
        for token in delta_token_ids:
            if token in (self._end, self._calls) and thinks:
                thinks = False
                kinds.append(_MARK if token == self._end else _CONTENT)
            elif token == self._start and self._end is not None:
                thinks = True
                kinds.append(_MARK)
            else:
                kinds.append(_THOUGHT if thinks else _CONTENT)
        return ParsedReasoningDelta(Thoughts(kinds), thinks)

    def will_reason_after_prompt(self, prompt_token_ids: Sequence[int]) -> bool:
        """Says whether the prompt leaves its last turn within thinking."""
        if self._start is None or self._end is None:
            return False
        for token in reversed(list(prompt_token_ids)):
            if token == self._start:
                return True
            if token == self._end or token in self._turn_ends:
                return False
        return False

    @classmethod
    async def from_tokenizer(cls, tokenizer: Any) -> MistralReasoningParser:
        """Returns the parser of a tokenizer's vocabulary."""
        special = special_tokens(tokenizer.delegate)
        return cls(
            special.get(START),
            special.get(END),
            special.get("[TOOL_CALLS]"),
            [special[text] for text in _TURN_ENDS if text in special],
        )

    @classmethod
    async def reasoning_end_token_id(cls, tokenizer: Any) -> int | None:
        """Returns the id of ``[/THINK]``, or None."""
        return special_tokens(tokenizer.delegate).get(END)


class Thoughts(ReasoningSpan):
    """The thoughts in a piece of an answer; MAX's own span is a single one.

    Args:
        kinds: What each token is.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__((0, 0), (0, 0))
        self._kinds = kinds

    def extract_content(self, seq: Sequence[T]) -> list[T]:
        """Returns what of ``seq`` stands outside of thoughts."""
        return self._only(_CONTENT, seq)

    def extract_reasoning(self, seq: Sequence[T]) -> list[T]:
        """Returns what of ``seq`` stands in thoughts, without their marks."""
        return self._only(_THOUGHT, seq)

    def _only(self, kind: str, seq: Sequence[T]) -> list[T]:
        return [x for x, found in zip(seq, self._kinds, strict=True) if found == kind]
