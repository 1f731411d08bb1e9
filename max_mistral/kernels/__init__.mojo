"""CPU kernels: linear layers and embeddings on packed weights, and attention."""

from .ops import *
from .paged import Attention
