"""What FP8 and NVFP4 share: scales beside weights, in some blocks only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from max.dtype import DType
from max.graph.weights import WeightData
from max.nn.quant_config import QuantConfig

from ..errors import UserError
from ..sharing import Sharing
from ..weights.dtypes import SCALED
from .base import Linears, Part, WeightFormat, is_projection

_NO_SCALED_CACHE = "scales a KV cache in FP8, which MAX's has no scales for"
_KV_SCALES = (
    *("self_attn.k_scale", "self_attn.v_scale"),
    *("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    *("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    "self_attn.kv_scale",
    *(f"attention.{x}_fake_quantizer.qscale_act" for x in "qkv"),
)


@dataclass(frozen=True)
class QuantizedLayers:
    """Which blocks are quantized; the rest is bfloat16."""

    self_attn: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    fuse_mlp: bool = False
    """Whether gate and up may run as one matmul."""

    @classmethod
    def of(cls, weights: Mapping[str, WeightData]) -> QuantizedLayers:
        """Reads them off the dtypes of the weights, by their names in the graph.

        Raises:
            UserError: (a ``ValueError``) naming an attention or MLP of which only
                a part is quantized, which ``max.nn`` cannot run.
        """
        dtypes: dict[tuple[str, int], set[bool]] = {}
        for name, weight in weights.items():
            if is_projection(name):
                _, number, part, _, _ = name.split(".")
                found = dtypes.setdefault((part, int(number)), set())
                found.add(weight.dtype in SCALED)
        layers: dict[str, set[int]] = {"self_attn": set(), "mlp": set()}
        for (part, layer), found in dtypes.items():
            if len(found) > 1:
                raise UserError(
                    f"Of layers.{layer}.{part} some projections are quantized and "
                    "some are not; max_mistral supports all or none. Take the model's "
                    "bfloat16 checkpoint, or a GGUF file on a CPU."
                )
            if found == {True}:
                layers[part].add(layer)
        return cls(frozenset(layers["self_attn"]), frozenset(layers["mlp"]))

    def __bool__(self) -> bool:
        return bool(self.self_attn or self.mlp)


@dataclass(frozen=True)
class ScaledFormat(WeightFormat):
    """A format of ``max.nn``'s ``QuantConfig``."""

    layers: QuantizedLayers = field(default=QuantizedLayers(), kw_only=True)
    """From :meth:`finalize`; none before it."""

    def finalize(
        self,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        sharing: Sharing,
    ) -> Self:
        """See :meth:`WeightFormat.finalize`."""
        layers = QuantizedLayers.of(weights)
        if not layers:
            return self
        degree = sharing.tensor_parallel_degree
        return self.finalize_layers(layers, weights, widths, degree)

    def finalize_layers(
        self,
        layers: QuantizedLayers,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        degree: int,
    ) -> Self:
        """Returns this format for these quantized layers.

        Args:
            layers: Which they are; whether gate and up fuse is not set yet.
            weights: See :meth:`WeightFormat.finalize`.
            widths: See there.
            degree: How many devices share a replica.
        """
        raise NotImplementedError

    @cached_property
    def quant_config(self) -> QuantConfig:
        """This format as ``max.nn`` is told of it. Float32 scales, but NVFP4's."""
        raise NotImplementedError

    def quantized_linears(self) -> Linears:
        """Returns what a quantized attention or MLP is made of."""
        raise NotImplementedError

    def linears(self, part: Part, layer: int, dtype: DType) -> Linears:
        """See :meth:`WeightFormat.linears`."""
        quantized = layer in getattr(self.layers, part)
        return self.quantized_linears() if quantized else Linears(dtype)

    def layer_kind(self, layer: int) -> tuple[object, ...]:
        """See :meth:`WeightFormat.layer_kind`."""
        return layer in self.layers.self_attn, layer in self.layers.mlp

    def dropped(
        self, projections: Collection[str], found: Mapping[str, WeightData]
    ) -> dict[str, str]:
        """See :meth:`WeightFormat.dropped`."""
        return {name: _NO_SCALED_CACHE for name in found if name.endswith(_KV_SCALES)}


def check_blocks(widths: Mapping[str, int], block: int, degree: int) -> None:
    """Raises a ``UserError`` that names a width whose blocks devices would share.

    Args:
        widths: The widths by what they are of.
        block: How wide a block is.
        degree: How many devices share a replica.
    """
    for name, size in widths.items():
        if block > 1 and size % (degree * block):
            mend = "Use fewer" if degree > 1 else "Run its bfloat16 checkpoint on such"
            raise UserError(
                f"The {name} width {size} on {degree} devices is not in whole blocks "
                f"of {block}, as the quantized weights need it on this GPU or in this "
                f"checkpoint. {mend} devices."
            )
