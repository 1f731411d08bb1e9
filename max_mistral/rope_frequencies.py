"""Rotary frequencies as Hugging Face computes them, every type a Mistral uses.

Source: ``transformers/modeling_rope_utils.py`` (5.12), the functions named below.
They are few and fixed, so NumPy makes them on the host.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .hf_rope import RopeScaling


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> npt.NDArray[np.float32]:
    """Returns the rotary frequencies, radians per position, ``[head_dim / 2]``."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling.rope_type == "divisors":  # llama.cpp, ``ggml_rope_ext``
        return (frequencies / np.array(scaling.divisors)).astype(np.float32)
    stretched = frequencies / scaling.factor
    if scaling.rope_type == "linear":  # _compute_linear_scaling_rope_parameters
        return stretched.astype(np.float32)
    if scaling.rope_type == "llama3":
        keep = _llama3_keep(frequencies, scaling)
    else:
        assert scaling.rope_type == "yarn"
        keep = _yarn_keep(head_dim, theta, scaling)
    return (stretched * (1 - keep) + frequencies * keep).astype(np.float32)


def _llama3_keep(
    frequencies: npt.NDArray[np.float64], scaling: RopeScaling
) -> npt.NDArray[np.float64]:
    """The share of each frequency kept; ``_compute_llama3_parameters``."""
    assert scaling.original_max_position_embeddings is not None
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((rotations - low) / (high - low), 0, 1)


def _yarn_keep(
    head_dim: int, theta: float, scaling: RopeScaling
) -> npt.NDArray[np.float64]:
    """The share of each frequency kept; ``_compute_yarn_parameters``.

    YaRN, https://arxiv.org/abs/2309.00071, section 3.2.
    """
    original = scaling.original_max_position_embeddings
    assert original is not None

    def dimension(rotations: float) -> float:
        """Where a frequency makes this many rotations over the context."""
        turns = math.log(original / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as the reference does, against a division by zero
    ramp = (np.arange(head_dim // 2, dtype=np.float64) - low) / (high - low)
    return 1 - np.clip(ramp, 0, 1)
