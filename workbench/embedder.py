"""Embeds texts of token ids as ``max encode`` does: tokenizer, pipeline and model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.modeling.types import (
    EmbeddingsGenerationInputs,
    PipelineTask,
    RequestID,
    TextGenerationRequest,
)

from workbench.runner import make_pipeline_config

TASK = PipelineTask.EMBEDDINGS_GENERATION


@dataclass
class Embedder:
    """A model that embeds.

    Args:
        folder: The checkpoint.
        config: Flags beyond those of ``make_pipeline_config``.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = make_pipeline_config(self.folder, **{"task": TASK} | self.config)
        self.tokenizer: Any
        self.pipeline: Any
        self.tokenizer, self.pipeline = PIPELINE_REGISTRY.retrieve(config, task=TASK)

    def embed(self, texts: list[Any]) -> npt.NDArray[np.float32]:
        """Returns an embedding of each text, in one batch of MAX's scheduler."""
        contexts = [asyncio.run(self._context(text)) for text in texts]
        batch = {context.request_id: context for context in contexts}
        outputs = self.pipeline.execute(EmbeddingsGenerationInputs([batch]))
        return np.stack([outputs[c.request_id].embeddings for c in contexts])

    async def _context(self, text: Any) -> Any:
        return await self.tokenizer.new_context(
            TextGenerationRequest(request_id=RequestID(), model_name="m", prompt=text)
        )
