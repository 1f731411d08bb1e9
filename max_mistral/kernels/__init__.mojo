"""CPU kernels: blocks, linear layers and embeddings on packed weights, and attention."""

from .block import Block
from .embedding import Embedding
from .linear import Linear
from .attention import Attention
