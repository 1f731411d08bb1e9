"""CPU kernels: linear layers and embeddings on packed weights, and attention."""

from .embedding import Embedding
from .linear import Linear
from .attention import Attention
