"""MAX's pipeline for CPUs, with steps that verify drafts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from max.driver import Buffer
from max.pipelines.context import (
    LogProbabilities,
    TextContext,
    TextGenerationOutput,
)
from max.pipelines.context.logit_processors_type import (
    BatchProcessorInputs,
    ProcessorInputs,
)
from max.pipelines.lib import ModelOutputs, TextGenerationPipeline
from max.pipelines.modeling.types import (
    PipelineOutputsDict,
    RequestID,
    TextGenerationInputs,
)
from max.pipelines.sampling import FusedSamplingProcessor
from max.pipelines.speculative.utils import _SpeculativeDecodingMetrics

from . import enabled
from .counts import Counts, only_count
from .drafts import Draft
from .follower import Follower
from .grammar import Mask, masks_of_rows
from .greedy import GreedySampler, greedy_tokens
from .odds import MOST, Candidate, Cost, how_many
from .rows import NO_TOKENS, Tokens, sampled_rows, with_drafts
from .samplers import samplers_together


class LookupPipeline(TextGenerationPipeline[TextContext]):
    """Generates text, several tokens a step where the text repeats itself.

    Without drafts (``MAX_MISTRAL_LOOKUP=off``) a step still takes less of Python
    than MAX's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with samplers_together():
            super().__init__(*args, **kwargs)
        assert self._sampler_without_bitmask is not None
        sampler = self._sampler_without_bitmask.execute
        plain: Any = GreedySampler(sampler, self.vocab_size)
        self._sampler_without_bitmask = plain
        self._drafts = enabled()
        self._cost = Cost()
        self._followers: dict[RequestID, Follower] = {}
        self._counts: Counts | None = None

    def batch_spec_decode_metrics(self) -> _SpeculativeDecodingMetrics | None:
        """Returns the counts of the last step, if it had drafts; MAX asks."""
        return self._counts

    def release(self, request_id: RequestID) -> None:
        """Forgets a request."""
        self._followers.pop(request_id, None)
        super().release(request_id)

    def _execute(
        self, inputs: TextGenerationInputs[TextContext]
    ) -> PipelineOutputsDict[TextGenerationOutput]:
        self._counts = None
        batch = inputs.flat_batch
        if not batch or not all(self._may_draft(context) for context in batch):
            return super()._execute(inputs)
        if not self._drafts:
            found = self._step(inputs, [NO_TOKENS] * len(batch))
            self._counts = None
            return found
        began = time.perf_counter()
        before = [len(context.tokens) for context in batch]
        known = len(self._followers)
        followers = [self._follower(context) for context in batch]
        new = len(self._followers) > known
        proposed = [
            self._propose(context, follower)
            for context, follower in zip(batch, followers, strict=True)
        ]
        candidates = [
            Candidate(draft.agreed, len(draft.tokens), follower.odds)
            for draft, follower in zip(proposed, followers, strict=True)
        ]
        chosen = how_many(candidates, self._cost)
        drafts = [
            np.array(draft.tokens[:count], np.int64) if count else NO_TOKENS
            for draft, count in zip(proposed, chosen, strict=True)
        ]
        outputs = self._step(inputs, drafts)
        for context, draft, follower, length in zip(
            batch, proposed, followers, before, strict=True
        ):
            if draft.tokens:
                came = context.tokens.all[length:].tolist()
                follower.odds.learn(draft.agreed, draft.tokens, came)
        if not new:
            # A new follower takes in its prompt, which may take as long as a step.
            seconds = time.perf_counter() - began
            # A grammar may have ended drafts before they ran.
            counts = self.batch_spec_decode_metrics()
            assert counts is not None
            drafted = counts.draft_tokens_generated
            self._cost.observe(len(batch) + drafted, seconds, drafts=drafted > 0)
        return outputs

    def _may_draft(self, context: TextContext) -> bool:
        """Whether a request decodes, and nothing but its row's token matters."""
        sampling = self._pipeline_config.sampling
        return (
            context.tokens.active_length == 1
            and context.tokens.generated_length > 0
            and not context.log_probabilities_echo
            and not context.label_token_ids
            and only_count(context.sampling_params.logits_processors)
            and not (
                sampling.enable_min_tokens
                and context.tokens.generated_length < context.min_tokens
            )
        )

    def _follower(self, context: TextContext) -> Follower:
        """Returns what follows a request's text, from its first step on."""
        follower = self._followers.get(context.request_id)
        if follower is None:
            follower = self._followers[context.request_id] = Follower()
        return follower

    def _propose(self, context: TextContext, follower: Follower) -> Draft:
        """Returns a draft as long as the rest of the context's page."""
        tokens = context.tokens
        page = self._kv_manager.params.page_size
        room = page - 1 - tokens.processed_length % page
        room = min(room, context.max_length - len(tokens) - 1)
        draft = follower.propose(tokens.all, room)
        # Nothing comes after an end.
        ends = context.eos_tracker.eos_token_ids
        for i, token in enumerate(draft.tokens):
            if token in ends:
                return Draft(draft.tokens[: i + 1], draft.agreed)
        return draft

    def _step(
        self, inputs: TextGenerationInputs[TextContext], drafts: Sequence[Tokens]
    ) -> PipelineOutputsDict[TextGenerationOutput]:
        """Runs a step with a row for each draft, and takes those that were right."""
        batch = inputs.flat_batch
        mask: Mask | None = None
        if self.initialize_bitmask(batch) is not None:
            masks, drafts = masks_of_rows(self._structured_output, batch, drafts)
            # Where nothing is forbidden, as where tools are merely offered, the sampler
            # without grammars draws the same, and sooner.
            if (masks != -1).any():
                mask = masks
        model = self._pipeline_model
        caches = self._kv_manager.runtime_inputs([batch])
        if self.batch_info_output_fname is not None:
            self._record_batch_info(batch)
        step: Any = model.prepare_initial_token_inputs([batch], caches)
        rows: list[Any] = list(batch)
        if any(map(len, drafts)):
            # MAX copies them in the background.
            self._devices[0].synchronize()
            step = with_drafts(step, drafts)
            rows = sampled_rows(batch, drafts)
        outputs = self._launch_forward_pass(step, batch, step=0)
        tokens = self._sample(rows, outputs, mask)
        scores: list[LogProbabilities | None] = [None] * len(rows)
        if inputs.enable_log_probs:
            wanted = [
                count
                for count, draft in zip(inputs.batch_top_log_probs, drafts, strict=True)
                for _ in range(1 + len(draft))
            ]
            scores = model.compute_log_probabilities(
                self.session,
                step,
                outputs,
                Buffer.from_numpy(tokens),
                wanted,
                [False] * len(rows),
            )
        return self._commit(batch, drafts, tokens.tolist(), scores, outputs.logits)

    def _sample(
        self, rows: list[Any], outputs: ModelOutputs, mask: Mask | None
    ) -> Tokens:
        """Returns each row's token."""
        sampler, logits = self._sampler_without_bitmask, outputs.next_token_logits
        if mask is not None:
            sampler = self._sampler_with_bitmask
        elif (
            logits is not None
            and all(row.sampling_params.top_k == 1 for row in rows)
            and not any(row.sampling_params.needs_penalties for row in rows)
            and (tokens := greedy_tokens(logits, self.vocab_size)) is not None
        ):
            return tokens
        assert sampler is not None
        processor = FusedSamplingProcessor(
            sampler=sampler,
            pipeline_config=self._pipeline_config,
            context_batch=rows,
            device=self._sampler_device,
            bitmask=mask,
            vocab_size=self.vocab_size,
            identity_logit_offsets=FusedSamplingProcessor.allocate_identity_logit_offsets(
                self._pipeline_config, self._sampler_device, len(rows)
            ),
        )
        logits, offsets = processor.logits_for_sampling(
            logits=outputs.logits,
            next_token_logits=outputs.next_token_logits,
            logit_offsets=outputs.logit_offsets,
        )
        processor(BatchProcessorInputs(logits, offsets, rows))
        assert processor.new_tokens is not None
        return processor.new_tokens.to_numpy()

    def _commit(
        self,
        batch: Sequence[TextContext],
        drafts: Sequence[Tokens],
        tokens: Sequence[int],
        scores: Sequence[LogProbabilities | None],
        logits: Buffer,
    ) -> PipelineOutputsDict[TextGenerationOutput]:
        """Appends to each request its rows' tokens, up to the first not drafted."""
        counts = Counts(MOST, num_verifications=sum(map(bool, map(len, drafts))))
        assert counts.accepted_per_position is not None
        found: dict[RequestID, TextGenerationOutput] = {}
        row = 0
        for context, draft in zip(batch, drafts, strict=True):
            for i in range(len(draft) + 1):
                token = tokens[row + i]
                for count in context.sampling_params.logits_processors or ():
                    count(ProcessorInputs(logits, context))
                context.advance_token_buffer(token, scores[row + i])
                context.advance_fsm(token)
                counts.came += 1
                right = i < len(draft) and token == draft[i]
                if right:
                    counts.accepted_per_position[i] += 1
                if context.is_done or not right:
                    break
            row += 1 + len(draft)
            counts.drafted += len(draft)
            output = context.to_generation_output()
            if output.tokens:
                found[context.request_id] = output
            self._kv_manager.step(context)
        self._counts = counts
        return found
