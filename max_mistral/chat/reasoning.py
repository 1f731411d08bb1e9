"""Thinking between ``[THINK]`` and ``[/THINK]``, told apart by token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from max.pipelines.lib.reasoning import register
from max.pipelines.modeling.types import (
    ParsedReasoningDelta,
    ReasoningParser,
    ReasoningSpan,
)

from .vocabulary import special_tokens

START = "[THINK]"
END = "[/THINK]"
NAME = "mistral"
# The prompt's last turn begins after these: what stands before is closed.
_TURN_ENDS = ("[/INST]", "[/TOOL_RESULTS]", "[/SYSTEM_PROMPT]")


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
        ids = list(delta_token_ids)
        begin = 0
        if self._start is None or self._end is None:
            return _delta((0, 0), (0, 0), False)
        if self._start in ids and not is_currently_reasoning:
            begin = ids.index(self._start)
        elif not is_currently_reasoning:
            return _delta((0, 0), (0, 0), False)
        first = begin + (begin < len(ids) and ids[begin] == self._start)
        for at in range(first, len(ids)):
            if ids[at] == self._end:
                return _delta((begin, at + 1), (first, at), False)
            if ids[at] == self._calls:
                return _delta((begin, at), (first, at), False)
        return _delta((begin, len(ids)), (first, len(ids)), True)

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


def _delta(
    delimited: tuple[int, int], inside: tuple[int, int], goes_on: bool
) -> ParsedReasoningDelta:
    return ParsedReasoningDelta(ReasoningSpan(delimited, inside), goes_on)
