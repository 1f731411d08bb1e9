"""What an adapter's tensors do to a weight, in float32.

Source: PEFT 0.21, ``peft/tuners/lora/layer.py`` (``Linear.get_delta_weight``,
``Embedding.get_delta_weight``, ``LoraLayer.update_layer``) and ``variants.py``
(``DoraLinearVariant.merge_safe``, ``DoraEmbeddingVariant.merge_safe``).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


def scaling(alpha: float, rank: int, *, rank_stabilized: bool) -> float:
    """Returns what the product of an adapter's pair is multiplied by."""
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def merge(
    weight: Values,
    a: Values,
    b: Values,
    scale: float,
    magnitude: Values | None = None,
    *,
    embedding: bool = False,
) -> Values:
    """Returns a weight with an adapter merged into it.

    Args:
        weight: ``[rows, columns]``; an embedding's rows are the tokens'.
        a: ``[rank, columns]``, of an embedding ``[rank, rows]``.
        b: ``[rows, rank]``, of an embedding ``[columns, rank]``.
        scale: What their product is multiplied by.
        magnitude: Of DoRA: the length of each of ``b``'s rows once merged.
        embedding: Whether the weight is the embedding, whose pair is transposed.
    """
    # Values beyond float32, and weights of length 0, are for the caller to find.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        delta = b @ a
        delta *= np.float32(scale)
        merged = weight + (delta.T if embedding else delta)
        if magnitude is not None:
            factors = magnitude / np.linalg.norm(merged, axis=0 if embedding else 1)
            merged *= factors if embedding else factors[:, None]
    return merged
