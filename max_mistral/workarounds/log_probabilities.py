"""Log-probabilities of a whole prompt, however MAX schedules it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from max.driver import Buffer, Device
from max.engine import InferenceSession
from max.nn.kv_cache import KVCacheInputs
from max.pipelines.context import LogProbabilities, TextContext
from max.pipelines.lib import ModelInputs, ModelOutputs, PipelineConfig
from max.pipelines.lib.log_probabilities import LogProbabilitiesMixin

from .host_scores import HostScores


class EchoLogProbabilities(LogProbabilitiesMixin):
    """Joins what the steps of a prefill give, of which MAX keeps the last.

    A prompt that is prefilled in chunks, or anew after it was preempted, is
    scored in several steps. What each gives waits in its context, by the
    position of the token that predicts. That no step is left out because the
    prefix cache has it is the tokenizer's care: it salts such a request.
    """

    _scored: tuple[ModelInputs, list[TextContext]] | None = None

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        arguments = (pipeline_config, session, devices, *args)
        if not devices[0].is_host:
            super().__init__(*arguments, **kwargs)
            return
        # Past MAX's own, which compiles its graph.
        super(LogProbabilitiesMixin, self).__init__(*arguments, **kwargs)
        self._logprobs_device = devices[0]
        self._logprobs_model: Any = HostScores()

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> Any:
        """Returns the inputs of a step over each context's active tokens."""
        inputs = super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits
        )
        self._scored = inputs, [ctx for batch in replica_batches for ctx in batch]
        return inputs

    def compute_log_probabilities(
        self,
        session: InferenceSession,
        model_inputs: ModelInputs,
        model_outputs: ModelOutputs,
        next_tokens: Buffer,
        batch_top_n: list[int],
        batch_echo: list[bool],
    ) -> list[LogProbabilities | None]:
        """Returns each request's scores; where it echoes, of its whole prompt.

        Args:
            session: MAX's, which scores on a GPU.
            model_inputs: Of the step.
            model_outputs: Of the step; all logits where a request echoes.
            next_tokens: int64 ``[batch]``, what was sampled.
            batch_top_n: How many of the likeliest tokens each request wants.
            batch_echo: Whether each wants its prompt's scores.
        """
        inputs, contexts = self._scored or (None, [])
        # A script that made its inputs itself has all it scores in one step.
        if not any(batch_echo) or inputs is not model_inputs:
            return super().compute_log_probabilities(
                session,
                model_inputs,
                model_outputs,
                next_tokens,
                batch_top_n,
                batch_echo,
            )
        # After a chunk comes the prompt's next token, not what was sampled.
        following = np.array(next_tokens.to_numpy())
        for row, context in enumerate(contexts):
            if context.tokens.actively_chunked:
                following[row] = context.tokens[context.tokens.current_position]
        found = super().compute_log_probabilities(
            session,
            model_inputs,
            model_outputs,
            Buffer.from_numpy(following),
            batch_top_n,
            batch_echo,
        )
        return [
            join(context, scores) if echo and scores is not None else scores
            for context, echo, scores in zip(contexts, batch_echo, found, strict=True)
        ]


def join(context: TextContext, scores: LogProbabilities) -> LogProbabilities | None:
    """Returns the scores of all steps of a prefill, once the last one is done.

    The first token's is NaN, for nothing predicts it; ``server/answer_shapes.py``
    makes null of it.

    Args:
        context: The request, which keeps what earlier steps gave.
        scores: What this step gave, one for each active token.
    """
    kept = context._log_probabilities_data
    for row, score in enumerate(scores.token_log_probabilities):
        kept[context.tokens.processed_length + row] = LogProbabilities(
            [score],
            [scores.top_log_probabilities[row]],
            [scores.sampled_token_ids[row]],
        )
    if context.tokens.actively_chunked:
        return None
    # What is generated is scored alone, in a prefill after a preemption too.
    context.log_probabilities_echo = False
    first = LogProbabilities([math.nan], [{}], [int(context.tokens[0])])
    parts = [first, *(kept.pop(at) for at in sorted(kept))]
    return LogProbabilities(
        [value for part in parts for value in part.token_log_probabilities],
        [value for part in parts for value in part.top_log_probabilities],
        [value for part in parts for value in part.sampled_token_ids],
    )
