"""Embeddings of texts: ``--task embeddings_generation``."""

from .config import MistralEmbeddingConfig
from .model import MistralEmbeddingModel
from .tokenizer import MistralEmbeddingTokenizer

__all__ = [
    "MistralEmbeddingConfig",
    "MistralEmbeddingModel",
    "MistralEmbeddingTokenizer",
]
