"""Requests through MAX's own pipeline, all at once and from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context import (
    EOSTracker,
    SamplingParams,
    TextContext,
    TokenBuffer,
)
from max.pipelines.modeling.types import TextGenerationInputs

from workbench.runner import make_pipeline_config


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        tokens: The prompt's.
        answer: Most tokens of the answer.
        sampling: Of ``SamplingParams``; the likeliest token by default.
        context: Of ``TextContext``, as ``json_schema``.
        enforced: Whether the answer has to fit that from its first token on.
    """

    tokens: Sequence[int]
    answer: int
    sampling: dict[str, Any] = field(default_factory=lambda: {"top_k": 1})
    context: dict[str, Any] = field(default_factory=dict)
    enforced: bool = False


@dataclass
class Answers:
    """What came, in the order of the requests.

    Attributes:
        tokens: The answers.
        scores: Each token's log-probabilities, if asked for.
        rate: Tokens a second while all requests were running, but for the first step.
        steps: How many steps there were after the first.
        drafted: How many tokens were drafted.
        right: How many of them were right.
    """

    tokens: list[list[int]]
    scores: list[list[Any]]
    rate: float = 0.0
    steps: int = 0
    drafted: int = 0
    right: int = 0


class Batch:
    """A model on a CPU as ``max serve`` runs it, without the server."""

    def __init__(self, folder: Path | str, **flags: Any) -> None:
        config = make_pipeline_config(folder, **flags)
        make: Any = PIPELINE_REGISTRY.retrieve_factory(config).factory
        self.pipeline = make()
        self.eos = PIPELINE_REGISTRY.retrieve_tokenizer(config).eos_token_ids
        self.may_draft = self.pipeline._may_draft

    def answer(
        self, requests: Sequence[Request], *, lookup: bool, max_steps: bool = False
    ) -> Answers:
        """Answers requests.

        Args:
            requests: What is asked.
            lookup: As ``MAX_MISTRAL_LOOKUP`` says it.
            max_steps: Whether all steps are MAX's own; then there are no drafts.
        """
        pipeline, manager = self.pipeline, self.pipeline.kv_manager
        pipeline._drafts = lookup
        pipeline._may_draft = (lambda context: False) if max_steps else self.may_draft
        manager.reset_prefix_cache()
        contexts = [self.context(request) for request in requests]
        found = Answers([[] for _ in contexts], [[] for _ in contexts], steps=-1)
        places = {context.request_id: i for i, context in enumerate(contexts)}
        running, began = contexts, 0.0
        for context in contexts:
            manager.claim(context)
        while running:
            for context in running:
                manager.alloc(context)
            outputs = pipeline.execute(TextGenerationInputs(batches=[running]))
            for request_id, output in outputs.items():
                place = places[request_id]
                found.tokens[place] += output.tokens
                found.scores[place] += output.log_probabilities or []
            for context in running:
                if context.is_done:
                    manager.release(context)
                    pipeline.release(context.request_id)
            if not began:
                began = time.perf_counter()
            elif len(running) == len(contexts):
                count = sum(len(answer) - 1 for answer in found.tokens)
                found.rate = count / (time.perf_counter() - began)
            running = [context for context in running if not context.is_done]
            found.steps += 1
            counts = pipeline.batch_spec_decode_metrics()
            if counts is not None:
                found.drafted += counts.draft_tokens_generated
                found.right += counts.draft_tokens_accepted
        return found

    def context(self, request: Request) -> TextContext:
        """Returns what MAX's tokenizer would make of a request."""
        sampling = SamplingParams(**request.sampling)
        eos = set() if sampling.ignore_eos else self.eos
        context = TextContext(
            max_length=len(request.tokens) + request.answer,
            tokens=TokenBuffer(np.array(request.tokens, np.int64)),
            sampling_params=sampling,
            eos_tracker=EOSTracker(eos_token_ids=eos),
            ignore_eos=sampling.ignore_eos,
            **request.context,
        )
        context.grammar_state.grammar_enforced = request.enforced
        return context
