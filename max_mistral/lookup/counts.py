"""What is counted of a step, and who counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from max.pipelines.context.logit_processors_type import LogitsProcessor
from max.pipelines.speculative.utils import _SpeculativeDecodingMetrics


@dataclass
class Counts(_SpeculativeDecodingMetrics):
    """What MAX's log and metrics say of a step: drafts differ in length here."""

    drafted: int = 0
    came: int = 0

    @property
    def draft_tokens_generated(self) -> int:
        """How many tokens were drafted."""
        return self.drafted

    @property
    def output_tokens(self) -> int:
        """How many tokens came of the step."""
        return self.came


def only_count(processors: Sequence[LogitsProcessor] | None) -> bool:
    """Whether a request's logits are only counted, which ``max generate`` does."""
    if not processors:
        return True
    from max._entrypoints.cli.generate import TrackMetrics

    return all(isinstance(each, TrackMetrics) for each in processors)
