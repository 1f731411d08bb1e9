"""MAX's two samplers, compiled together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from max.engine import InferenceSession, Model
from max.graph import DeviceRef
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib.graph_specs import (
    CompiledArtifacts,
    GraphRole,
    GraphSpec,
    compile_graphs,
    init_graphs,
)
from max.pipelines.lib.pipeline_variants import text_generation
from max.pipelines.sampling.sampling import TopKSampler


@contextmanager
def samplers_together() -> Iterator[None]:
    """Has a pipeline that is made meanwhile compile its samplers in one go.

    Half a minute of what a graph takes to compile is the same for all graphs, and is
    spent once for those in one module.
    """
    module: Any = text_generation
    apart = module.load_sampler_graphs

    def load(
        session: InferenceSession, pipeline_config: PipelineConfig, *rest: Any
    ) -> tuple[CompiledArtifacts, dict[str, Model]]:
        runtime = pipeline_config.runtime
        # MAX keeps a file for a graph, not for several.
        exports = runtime.precompiled_mefs or runtime.export_mefs
        if exports or not pipeline_config.needs_bitmask_constraints:
            found: tuple[CompiledArtifacts, dict[str, Model]]
            found = apart(session, pipeline_config, *rest)
            return found
        return load_samplers(session, pipeline_config, *rest)

    module.load_sampler_graphs = load
    try:
        yield
    finally:
        module.load_sampler_graphs = apart


def load_samplers(
    session: InferenceSession,
    pipeline_config: PipelineConfig,
    device: DeviceRef,
    vocab_size: int | None,
    custom_extensions: Sequence[Path] = (),
) -> tuple[CompiledArtifacts, dict[str, Model]]:
    """Returns the sampler for steps with grammars and the one for those without.

    As MAX's ``load_sampler_graphs`` does, by their roles.
    """
    specs: dict[str, GraphSpec] = {}
    for role in (GraphRole.SAMPLER_BITMASK, GraphRole.SAMPLER):
        sampler = TopKSampler(
            pipeline_config.sampling,
            device=device,
            needs_bitmask_input=role == GraphRole.SAMPLER_BITMASK,
            unpadded_vocab_size=vocab_size,
        )
        specs[role] = GraphSpec(
            sampler,
            f"{TopKSampler.GRAPH_NAME}_{role.value}",
            sampler.input_types,
            group=TopKSampler.GRAPH_NAME,
            custom_extensions=custom_extensions,
        )
    artifacts = compile_graphs(session, specs)
    return artifacts, init_graphs(session, artifacts, specs)
