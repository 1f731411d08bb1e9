"""MAX's rotary embedding, with the frequencies of every type that a Mistral uses."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from max.nn.rotary_embedding import RotaryEmbedding

from ..hf_rope import RopeScaling
from ..rope_frequencies import inverse_frequencies


class ScaledRotaryEmbedding(RotaryEmbedding):
    """MAX's table of cosines and sines, made from :func:`inverse_frequencies`.

    Args:
        scaling: The stretch, or ``None``.
        theta: The base of the frequencies.
        head_dim: Width of one attention head.
        max_seq_len: Longest sequence in tokens.
    """

    def __init__(
        self,
        scaling: RopeScaling | None,
        *,
        theta: float,
        head_dim: int,
        max_seq_len: int,
    ) -> None:
        super().__init__(
            dim=head_dim,
            n_heads=1,
            theta=theta,
            max_seq_len=max_seq_len,
            head_dim=head_dim,
            # HF checkpoints pair dimension i with i + head_dim / 2.
            interleaved=False,
        )
        self.scaling = scaling

    def _compute_inv_freqs(self) -> TensorValue:
        return ops.constant(
            inverse_frequencies(self.head_dim, self.theta, self.scaling),
            DType.float32,
            DeviceRef.CPU(),
        )

    def freqs_cis_base(self) -> TensorValue:
        """Returns cosines and sines, ``[2 * max_seq_len, head_dim / 2, 2]``."""
        if self._freqs_cis is None:
            factor = 1.0 if self.scaling is None else self.scaling.attention_factor
            table = super().freqs_cis_base()
            self._freqs_cis = table if factor == 1.0 else table * factor
        return TensorValue(self._freqs_cis)
