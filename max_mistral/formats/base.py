"""What a weight format owns: its tensors, their conversion, its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.quantization import QuantizationEncoding
from max.graph.weights import WeightData
from max.nn.linear import MLP, Linear
from max.nn.quant_config import QuantConfig
from max.nn.stacked_linear import StackedLinear
from max.pipelines.modeling.config_enums import SupportedEncoding

from ..errors import UserError
from ..sharing import Sharing
from ..weights.dtypes import FLOATS, cast, check_dtype
from ..weights.names import ExpectedTensor
from .qkv import SeparateQKV

Expected = dict[str, ExpectedTensor]
Part = Literal["self_attn", "mlp"]

BLOCK = 128
"""Side of an FP8 weight's blocks, and columns of a GPTQ weight's groups: what
MAX's kernels take."""


@dataclass(frozen=True)
class Linears:
    """The ``max.nn`` layers that one attention or MLP is made of."""

    dtype: DType
    """Of the weights."""
    linear_cls: Callable[..., Any] = Linear
    qkv_cls: Callable[..., Any] | None = StackedLinear
    """Runs Q, K and V as one matmul; ``None`` runs them one by one."""
    mlp_cls: Callable[..., MLP] = MLP
    quant_config: QuantConfig | None = None
    encoding: QuantizationEncoding | None = None

    def linear(self, in_dim: int, out_dim: int, device: DeviceRef) -> Any:
        """Returns one projection, from ``[rows, in_dim]``; it has no bias."""
        return self.linear_cls(
            in_dim=in_dim,
            out_dim=out_dim,
            dtype=self.dtype,
            device=device,
            quant_config=self.quant_config,
        )

    def qkv(self, in_dim: int, out_dims: Mapping[str, int], device: DeviceRef) -> Any:
        """Returns the projections of Q, K and V, by their names.

        Args:
            in_dim: The hidden size.
            out_dims: By the name of each, its heads times head_dim.
            device: Where they run.
        """
        if self.qkv_cls is None:
            return SeparateQKV(
                {
                    name: self.linear(in_dim, out_dim, device)
                    for name, out_dim in out_dims.items()
                }
            )
        return self.qkv_cls(
            in_dim=in_dim,
            out_dims=list(out_dims.values()),
            names=list(out_dims),
            dtype=self.dtype,
            device=device,
            quant_config=self.quant_config,
        )

    def mlp(self, hidden: int, wide: int, devices: Sequence[DeviceRef]) -> MLP:
        """Returns SwiGLU, ``[rows, hidden]`` to ``[rows, wide]`` and back."""
        return self.mlp_cls(
            self.dtype,
            self.encoding,
            hidden,
            wide,
            devices,
            linear_cls=self.linear_cls,
            quant_config=self.quant_config,
        )


class WeightFormat(ABC):
    """How the projections of a quantized checkpoint are stored and run.

    Embedding, norms and head are not quantized.
    """

    NAME: ClassVar[str]
    ENCODING: ClassVar[SupportedEncoding]
    """Its ``--quantization-encoding``."""

    reads_native: bool = False
    """Whether it may have Mistral's own names, whose Q and K rows are reordered
    at load. Scales per row or block would have to move with the rows."""

    needs_own_matmul: bool = False
    """Whether its products run on ``gpu_kernels/`` on the GPUs that are here."""

    def check_runs(self, devices: Sequence[DeviceRef], dtype: DType) -> None:
        """Raises a ``UserError`` if such a checkpoint cannot run as asked.

        Args:
            devices: Where it is to run.
            dtype: Of the activations.
        """
        if any(device.is_cpu() for device in devices):
            if self.is_restored(on_cpu=True) and dtype == DType.float32:
                return
            raise UserError(
                f"The checkpoint is quantized in {self.NAME}, which runs on GPUs "
                "only. Name one (--devices gpu:0); on a CPU run the model's bfloat16 "
                "checkpoint or a GGUF file of it."
            )
        if dtype != DType.bfloat16:
            raise UserError(
                f"The checkpoint is quantized in {self.NAME}, but the activations "
                f"would be {dtype.name}. Set --quantization-encoding {self.ENCODING}."
            )

    @abstractmethod
    def tensors(
        self, name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData]
    ) -> Expected:
        """Returns what the checkpoint has in the place of one projection's weight.

        Args:
            name: The weight's name in the checkpoint, were it not quantized.
            tensor: What would be expected then.
            found: The checkpoint's tensors.
        """

    @abstractmethod
    def dropped(
        self, projections: Collection[str], found: Mapping[str, WeightData]
    ) -> dict[str, str]:
        """Returns the tensors that it may also have, and why each is not needed.

        Args:
            projections: The weights' names in the checkpoint.
            found: The checkpoint's tensors.
        """

    @abstractmethod
    def convert(
        self, graph_name: str, weight: WeightData, dtype: DType, source: str
    ) -> WeightData:
        """Returns a tensor as the graph wants it.

        Args:
            graph_name: Its name in the graph.
            weight: As it is in the checkpoint.
            dtype: Of what is not quantized.
            source: What to call the checkpoint in a message.

        Raises:
            UserError: (a ``ValueError``) naming a tensor whose dtype does not fit.
        """

    def is_restored(self, *, on_cpu: bool) -> bool:
        """Whether :meth:`restore` makes bfloat16 weights of it at load.

        Args:
            on_cpu: Whether it is to run on a CPU; else on the GPUs that are here.
        """
        return False

    def restore(
        self, data: npt.NDArray[np.uint8], shape: tuple[int, ...], scale: WeightData
    ) -> npt.NDArray[np.uint8]:
        """Returns a projection's weight in bfloat16, its bytes.

        Args:
            data: The weight's bytes in the checkpoint.
            shape: ``(rows, columns)``.
            scale: From :meth:`convert`.
        """
        raise NotImplementedError

    def finalize(
        self,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        sharing: Sharing,
    ) -> Self:
        """Returns this format with what only the weights say.

        Args:
            weights: The tensors by their names in the graph.
            widths: Of ``"query"``, ``"key"`` and ``"MLP"``, on all devices of a
                replica together.
            sharing: How devices share the model.

        Raises:
            UserError: (a ``ValueError``) if only a part of an attention or MLP is
                quantized, or devices would share a block of scales.
        """
        return self

    @abstractmethod
    def linears(self, part: Part, layer: int, dtype: DType) -> Linears:
        """Returns what a block's attention or MLP is made of.

        Args:
            part: Which of the two.
            layer: Which block.
            dtype: Of weights that are not quantized.
        """

    def layer_kind(self, layer: int) -> tuple[object, ...]:
        """Returns what distinguishes a block's graph from another's."""
        return ()


def is_projection(graph_name: str) -> bool:
    """Whether a weight of this name in the graph may be quantized."""
    return graph_name.endswith("_proj.weight")


def convert_float(weight: WeightData, dtype: DType, source: str) -> WeightData:
    """Returns a tensor that is not quantized in ``dtype``."""
    check_dtype(weight, FLOATS, source)
    return cast(weight, dtype)


def part_of_projection(
    name: str,
    tensor: ExpectedTensor,
    found: Mapping[str, WeightData],
    role: str,
    spellings: Sequence[str],
    shape: tuple[int, ...],
) -> Expected:
    """Returns one of the tensors that stand in a projection weight's place.

    Args:
        name: The weight's name in the checkpoint.
        tensor: The weight.
        found: The checkpoint's tensors.
        role: What the graph calls the part, such as ``weight_scale``.
        spellings: What checkpoints call it.
        shape: Its shape. One scale may be stored as ``[]`` or ``[1]``, a column
            as ``[rows]``.
    """
    stem, graph = name.removesuffix("weight"), tensor.graph.removesuffix("weight")
    names = [stem + spelling for spelling in spellings]
    present = next((n for n in names if n in found), names[0])
    if present in found:
        stored = tuple(int(d) for d in found[present].shape)
        alike = [(1,)] if shape == () else [shape[:1]] if shape[1] == 1 else []
        shape = stored if stored in alike else shape
    return {present: ExpectedTensor(graph + role, shape)}
