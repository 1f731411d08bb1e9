"""What MAX registers: one declaration per architecture name in ``config.json``."""

from dataclasses import replace
from typing import cast

from max.graph.weights import WeightsFormat
from max.pipelines.context import TextContext
from max.pipelines.lib import SupportedArchitecture
from max.pipelines.modeling.types import PipelineTask

from .batch_processor import MistralBatchProcessor
from .chat import REASONING_PARSER, TOOL_PARSER
from .embeddings import (
    MistralEmbeddingConfig,
    MistralEmbeddingModel,
    MistralEmbeddingTokenizer,
)
from .lookup.choice import make_pipeline
from .memory_planner import EmbeddingMemoryPlanner, MistralMemoryPlanner
from .model import MistralModel
from .model_config import MistralConfig
from .tokenizer import MistralTokenizer
from .weight_adapters import WEIGHT_ADAPTERS

# One model serves them all; the config says which maths a checkpoint needs.
EXAMPLES = {
    "MistralForCausalLM": [
        "mistralai/Mistral-7B-Instruct-v0.3",
        "mistralai/Mistral-Nemo-Instruct-2407",
        "mistralai/Mistral-Small-24B-Instruct-2501",
    ],
    "MinistralForCausalLM": ["mistralai/Ministral-8B-Instruct-2410"],
    "Ministral3ForCausalLM": ["mistralai/Ministral-3-8B-Base-2512"],
    # The text tower; images are refused.
    "Mistral3ForConditionalGeneration": [
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
    ],
}

mistral_arch = SupportedArchitecture(
    name="MistralForCausalLM",
    task=PipelineTask.TEXT_GENERATION,
    example_repo_ids=EXAMPLES["MistralForCausalLM"],
    default_encoding=MistralConfig.DEFAULT_ENCODING,
    supported_encodings=MistralConfig.SUPPORTED_ENCODINGS,
    default_weights_format=WeightsFormat.safetensors,
    weight_adapters=WEIGHT_ADAPTERS,
    pipeline_model=MistralModel,
    # MAX calls it with keywords, as it would call a class.
    pipeline_cls=cast(type, make_pipeline),
    config=MistralConfig,
    batching=MistralBatchProcessor,
    context_type=TextContext,
    tokenizer=MistralTokenizer,
    tool_parser=TOOL_PARSER,
    reasoning_parser=REASONING_PARSER,
    # Mistral's models write ": " and ", " in JSON; compact JSON is not their own.
    default_structured_output_any_whitespace=True,
    memory_planner=MistralMemoryPlanner,
    multi_gpu_supported=True,
    supports_overlap_scheduler=True,
    supports_device_graph_capture=True,
)

# With ``--task embeddings_generation``, and alone for a model without a head.
EMBEDDING_EXAMPLES = {
    "MistralModel": [
        "intfloat/e5-mistral-7b-instruct",
        "Salesforce/SFR-Embedding-Mistral",
        "Linq-AI-Research/Linq-Embed-Mistral",
    ],
    **{name: ["intfloat/e5-mistral-7b-instruct"] for name in EXAMPLES},
}

mistral_embedding_arch = SupportedArchitecture(
    name="MistralModel",
    task=PipelineTask.EMBEDDINGS_GENERATION,
    example_repo_ids=EMBEDDING_EXAMPLES["MistralModel"],
    default_encoding=MistralEmbeddingConfig.DEFAULT_ENCODING,
    supported_encodings=MistralEmbeddingConfig.SUPPORTED_ENCODINGS,
    default_weights_format=WeightsFormat.safetensors,
    weight_adapters=WEIGHT_ADAPTERS,
    pipeline_model=MistralEmbeddingModel,
    config=MistralEmbeddingConfig,
    context_type=TextContext,
    tokenizer=MistralEmbeddingTokenizer,
    memory_planner=EmbeddingMemoryPlanner,
    multi_gpu_supported=True,
    supports_overlap_scheduler=False,
    supports_device_graph_capture=False,
)

ARCHITECTURES = [
    replace(arch, name=name, example_repo_ids=repo_ids)
    for arch, examples in (
        (mistral_arch, EXAMPLES),
        (mistral_embedding_arch, EMBEDDING_EXAMPLES),
    )
    for name, repo_ids in examples.items()
]
