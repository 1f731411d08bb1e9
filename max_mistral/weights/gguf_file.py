"""A GGUF file's metadata, and its tensors as weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from max.graph.weights import WeightData
from transformers import PretrainedConfig

from ..errors import UserError
from ..fields import MOST_SCALE, Fields
from ..hf_rope import RopeScaling
from ..kernels.packing import Encoding
from ..kernels.pieces import Bytes
from ..other_models import refuse_other_models
from ..progress import progress
from ..rope_frequencies import inverse_frequencies
from .check_names import check_tensors
from .finite import check_bytes
from .gguf_encode import dequantize_rows, encode, encoding_of
from .gguf_header import read_header
from .heads import rotary_heads, split_rotary
from .kept import KeptMatrices
from .names import HEAD, dropped_tensors, expected_tensors
from .packed import pack_matrix
from .stored import Stored

logger = logging.getLogger("max.pipelines")


# GGUF architectures that compute what Mistral computes.
ARCHITECTURES = ("llama", "mistral3")

# Metadata that changes the maths in a way that no config.json of a Mistral can
# say, and the values that change nothing.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    # -1 means 1 where the type is yarn, and 0 where it is not.
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "logit_scale": (1.0, 0.0),
    "expert_count": (0,),
    "use_parallel_residual": (False,),
}
# What each rotary frequency is divided by, in the files of models whose RoPE is
# stretched as Llama 3.1's; llama.cpp works it out when it converts them.
_ROPE_DIVISORS = "rope_freqs.weight"
# Conversion computes in float32, where the largest, 32, is off by up to 1e-4.
_CLOSE = 1e-3


class GGUFCheckpoint:
    """One GGUF file.

    Args:
        path: The file.
        vocabulary: Whether to read the tokens too.

    Raises:
        UserError: (a ``ValueError``) if it is no complete GGUF file, or one of
            a model that is not Mistral's.
    """

    def __init__(self, path: Path, *, vocabulary: bool = True) -> None:
        self.path = path
        header = read_header(path, vocabulary=vocabulary)
        self.header = header
        self.tensors = header.tensors
        self.metadata = Fields(str(path), header.metadata.get)
        self.architecture = self.metadata.string("general.architecture")
        self._refuse_other_models()
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{path} holds the architecture {self.architecture!r}; max_mistral "
                f"reads {' and '.join(map(repr, ARCHITECTURES))}. Give a file of one "
                "of these."
            )
        self._check_neutral()

    def _refuse_other_models(self) -> None:
        refuse_other_models(
            str(self.path),
            self.metadata.get,
            lambda key: self.metadata.get(f"{self.architecture}.{key}"),
            kind="general.architecture",
        )

    def _check_neutral(self) -> None:
        for name, neutral in _NEUTRAL.items():
            key = f"{self.architecture}.{name}"
            if self.metadata.has(key) and self.metadata.get(key) not in neutral:
                expected = " or ".join(map(repr, neutral))
                self.metadata.refuse(key, self.metadata.get(key), expected)

    def rope_scaling(
        self, stated: RopeScaling | None, head_dim: int, theta: float
    ) -> RopeScaling | None:
        """Returns how RoPE is stretched: as the file's own tensor says, if it has one.

        Args:
            stated: What the config says.
            head_dim: Width of one attention head.
            theta: The base of the frequencies.

        Raises:
            UserError: (a ``ValueError``) if the tensor is no such list of numbers,
                or the config stretches RoPE too, and not as Llama 3.1 does with
                the same numbers.
        """
        tensor = self.tensors.get(_ROPE_DIVISORS)
        if tensor is None:
            return stated
        what = f"{self.path} has {_ROPE_DIVISORS}"
        if tensor.shape != (head_dim // 2,):
            raise UserError(
                f"{what} of shape {list(tensor.shape)}; expected [{head_dim // 2}], "
                "one for each rotary frequency. Fetch the file again."
            )
        values = dequantize_rows(
            tensor.stored.read(),
            tensor.ggml_type,
            tensor.shape,
            f"{self.path}: {_ROPE_DIVISORS}",
        )
        # NaN is not between any two.
        wrong = ~((values >= 1 / MOST_SCALE) & (values <= MOST_SCALE))
        if wrong.any():
            raise UserError(
                f"{what} with {values[wrong][0]}; expected numbers from "
                f"{1 / MOST_SCALE:g} to {MOST_SCALE:g}. Fetch the file again."
            )
        if np.all(values == 1):
            return stated
        if stated is None:
            return RopeScaling(rope_type="divisors", divisors=tuple(values.tolist()))
        why = "max_mistral stretches RoPE in one way at a time"
        if stated.rope_type == "llama3":
            plain = inverse_frequencies(head_dim, theta, None)
            wanted = plain / inverse_frequencies(head_dim, theta, stated)
            if np.allclose(values, wanted, rtol=_CLOSE):
                return stated
            why = f"its numbers would be {wanted[0]:g} to {wanted[-1]:g}"
        raise UserError(
            f"{what} with {values[0]:g} to {values[-1]:g}, and rope_type is "
            f"{stated.rope_type!r}; {why}. If config.json is not of this file, take "
            "that of the model that the file was made of, or make it with python -m "
            "max_mistral.prepare."
        )

    def weights(
        self,
        config: PretrainedConfig,
        *,
        packed: bool,
        headless: bool = False,
        kept: KeptMatrices | None = None,
    ) -> Iterator[tuple[str, WeightData]]:
        """Yields each tensor under its name in the graph.

        Matrices are packed as they are encoded, or else everything is float32.

        Args:
            config: The HF config that the tensors must fit.
            packed: Whether to pack the matrices.
            headless: Whether to leave a head out.
            kept: Matrices that an earlier start packed; by default none.

        Raises:
            UserError: (a ``ValueError``) if the tensors do not fit the config,
                or naming one that is not finite, or whose type the ``gguf``
                package cannot read.
        """
        tied = headless or HEAD.gguf not in self.tensors
        expected = expected_tensors(config, "gguf", tied=tied)
        check_tensors(
            {name: tensor.shape for name, tensor in self.tensors.items()},
            expected,
            dropped_tensors(config, "gguf", tied=tied),
            str(self.path),
        )
        repacked: Counter[str] = Counter()
        wanted = [t for t in self.tensors.values() if t.name in expected]
        for tensor in progress(wanted, "Loading weights", "tensors"):
            graph, shape = expected[tensor.name].graph, expected[tensor.name].shape
            heads = rotary_heads(graph, config)
            ggml_type, what = tensor.ggml_type, f"{self.path}: {tensor.name}"
            if packed and len(shape) == 2:
                encoding = encoding_of(ggml_type)
                data: Stored | Callable[[], Bytes] = tensor.stored
                if encoding.name != ggml_type.name:
                    repacked[f"{ggml_type.name} as {encoding.name}"] += 1
                    data = partial(encode, tensor.stored, ggml_type, shape, what)
                yield (
                    graph,
                    pack_matrix(
                        *(graph, data, shape, encoding),
                        *(tensor.name, str(self.path), heads, kept),
                    ),
                )
                continue
            values = dequantize_rows(tensor.stored.read(), ggml_type, shape, what)
            check_bytes(
                tensor.name,
                np.ascontiguousarray(values).reshape(-1).view(np.uint8),
                Encoding.F32,
                shape[-1],
                str(self.path),
            )
            if heads is not None:
                values = split_rotary(values, heads)
            yield graph, WeightData.from_numpy(np.ascontiguousarray(values), graph)
        for change, count in repacked.items():
            logger.info("%d tensors of %s are kept as %s", count, self.path, change)
