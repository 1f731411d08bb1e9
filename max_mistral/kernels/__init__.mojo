"""CPU kernels: linear layers and embeddings on packed weights."""

from .ops import *
