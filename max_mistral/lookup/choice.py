"""Which pipeline runs a model."""

from __future__ import annotations

from typing import Any

from max.graph import default_custom_extensions_scope
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib.registry import get_pipeline_for_task
from max.pipelines.modeling.types import PipelineTask

from ..kernels import library
from ..weights.packed import runs_packed
from .pipeline import LookupPipeline


def make_pipeline(*, pipeline_config: PipelineConfig, **kwargs: Any) -> Any:
    """Returns MAX's pipeline, or on a CPU one that drafts; MAX calls it as a class.

    MAX's own kernels may round otherwise where a step has more rows, so they
    (``MAX_MISTRAL_KERNELS=off``) never get drafts.
    """
    if not runs_packed(pipeline_config):
        plain = get_pipeline_for_task(PipelineTask.TEXT_GENERATION, pipeline_config)
        return plain(pipeline_config=pipeline_config, **kwargs)
    # MAX reads its own kernels, most of a second, for each graph without kernels
    # of others, but once for all graphs with the same: for the sampler's too then.
    with default_custom_extensions_scope(library()):
        return LookupPipeline(pipeline_config=pipeline_config, **kwargs)
