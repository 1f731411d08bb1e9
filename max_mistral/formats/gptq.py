"""GPTQ: projections of 4 bits in groups of 128 columns, symmetric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import is_virtual_device_mode
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.quantization import QuantizationConfig, QuantizationEncoding
from max.graph.weights import WeightData
from max.nn.linear import MLP, GPTQLinear

from ..errors import UserError
from ..sharing import Sharing
from ..weights.dtypes import FLOATS, check_dtype, in_float32
from ..weights.names import ExpectedTensor
from .base import BLOCK, Expected, Linears, Part, WeightFormat, convert_float
from .gptq_stacked import StackedGPTQMLP, StackedGPTQQKV, is_worth_stacking

# MAX's kernel takes no others.
_DTYPES = {
    "qweight": DType.int32,
    "scales": DType.float16,
    "perm_idx": DType.int32,
}
# Eight zero points of 4 bits, each stored less one: what AutoGPTQ writes for 8, the
# middle. GPTQModel's gptq_v2 has 0x88888888; see ``checkpoint_format`` in
# ``hf_quantization.py``.
_ZEROS = 0x77777777
_MEND = "Take the model's bfloat16 checkpoint, or a GGUF file on a CPU."


@dataclass(frozen=True)
class GPTQ(WeightFormat):
    """Four tensors in a weight's place, on one GPU; AutoGPTQ's layout."""

    NAME = "GPTQ"
    ENCODING = "gptq"

    desc_act: bool
    """Whether columns were quantized in the order of their activations, so that a
    group's columns are scattered over the weight."""
    apart: frozenset[tuple[str, int]] = frozenset()
    """Where Q, K and V, or gate and up, have their columns in different orders, by
    part and layer: they cannot be one product. From :meth:`finalize`."""

    def check_runs(self, devices: Sequence[DeviceRef], dtype: DType) -> None:
        """See :meth:`WeightFormat.check_runs`."""
        super().check_runs(devices, dtype)
        if len(devices) > 1:
            raise UserError(
                "The checkpoint is quantized in GPTQ, which runs on one GPU, not on "
                f"{len(devices)}. Name one in --devices."
            )

    def tensors(
        self, name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData]
    ) -> Expected:
        """See :meth:`WeightFormat.tensors`."""
        rows, columns = tensor.shape
        stem, graph = name.removesuffix("weight"), tensor.graph.removesuffix("weight")
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            # Eight weights of 4 bits per int32, and transposed.
            "qweight": ("qweight", (columns // 8, rows)),
            "scales": ("scales", (columns // BLOCK, rows)),
        }
        if self.desc_act:
            parts["g_idx"] = "perm_idx", (columns,)
        return {
            stem + spelling: ExpectedTensor(graph + role, shape)
            for spelling, (role, shape) in parts.items()
        }

    def dropped(
        self, projections: Collection[str], found: Mapping[str, WeightData]
    ) -> dict[str, str]:
        """See :meth:`WeightFormat.dropped`.

        Raises:
            UserError: (a ``ValueError``) naming a tensor that says otherwise than
                the config does.
        """
        dropped = {}
        # max warm-cache may have zeros for a checkpoint that is not there.
        checked: Mapping[str, WeightData] = {} if is_virtual_device_mode() else found
        for name in projections:
            stem = name.removesuffix("weight")
            _check_zeros(checked.get(stem + "qzeros"))
            dropped[stem + "qzeros"] = "8, since the weights are symmetric"
            if not self.desc_act:
                _check_order(checked.get(stem + "g_idx"))
                reason = "column / group_size, since desc_act is false"
                dropped[stem + "g_idx"] = reason
            bias = found.get(stem + "bias")
            if bias is not None and bias.dtype in FLOATS and not in_float32(bias).any():
                dropped[stem + "bias"] = "zero"
        return dropped

    def convert(
        self, graph_name: str, weight: WeightData, dtype: DType, source: str
    ) -> WeightData:
        """See :meth:`WeightFormat.convert`."""
        role = graph_name.rpartition(".")[2]
        if role not in _DTYPES:
            return convert_float(weight, dtype, source)
        check_dtype(weight, (_DTYPES[role],), source)
        if role == "perm_idx":
            groups = weight.to_buffer().to_numpy()
            # Which column each of the weight's rows is of.
            order = np.argsort(groups, kind="stable")
            # The kernel takes a scale for each 128 rows. See dropped() about zeros.
            if not (is_virtual_device_mode() or _are_in_order(groups[order])):
                raise UserError(
                    f"{weight.name} of {source} has groups of other than {BLOCK} "
                    f"columns; expected {BLOCK} columns in each of 0, 1, 2 and so on, "
                    f"by group_size in quantization_config. {_MEND}"
                )
            return WeightData.from_numpy(order.astype(np.int32), graph_name)
        return weight

    def finalize(
        self,
        weights: Mapping[str, WeightData],
        widths: Mapping[str, int],
        sharing: Sharing,
    ) -> GPTQ:
        """See :meth:`WeightFormat.finalize`."""
        orders: dict[tuple[str, int], set[bytes]] = {}
        for name, weight in weights.items():
            if name.endswith(".perm_idx"):
                _, number, part, projection, _ = name.split(".")
                if projection not in ("o_proj", "down_proj"):
                    found = orders.setdefault((part, int(number)), set())
                    found.add(weight.to_buffer().to_numpy().tobytes())
        apart = frozenset(key for key, found in orders.items() if len(found) > 1)
        return replace(self, apart=apart)

    def linears(self, part: Part, layer: int, dtype: DType) -> Linears:
        """See :meth:`WeightFormat.linears`."""
        made_of = Linears(
            dtype,
            linear_cls=partial(_linear, self),
            qkv_cls=None,
            encoding=QuantizationEncoding.GPTQ,
        )
        if (part, layer) in self.apart:
            return made_of
        return replace(made_of, qkv_cls=partial(_qkv, self), mlp_cls=_mlp)

    def layer_kind(self, layer: int) -> tuple[object, ...]:
        """See :meth:`WeightFormat.layer_kind`."""
        return tuple((part, layer) in self.apart for part in ("self_attn", "mlp"))


def _check_zeros(weight: WeightData | None) -> None:
    """Raises a ``UserError`` if zero points are there that are not 8."""
    if weight is None:
        return
    words = _integers(weight)
    others = words[words != _ZEROS]
    if others.size:
        raise UserError(
            f"{weight.name} has {int(others[0]) & 0xFFFFFFFF:#010x}, but sym in "
            f"quantization_config is true; expected {_ZEROS:#x} throughout, the zero "
            f"point 8 as AutoGPTQ stores it. {_MEND}"
        )


def _check_order(weight: WeightData | None) -> None:
    """Raises a ``UserError`` if groups are there that are not in order."""
    if weight is not None and not _are_in_order(_integers(weight)):
        raise UserError(
            f"{weight.name} has columns out of the order of their groups, but "
            f"desc_act in quantization_config is false; expected column / {BLOCK}, "
            f"rounded down. {_MEND}"
        )


def _integers(weight: WeightData) -> npt.NDArray[np.int32]:
    check_dtype(weight, (DType.int32,), "the checkpoint")
    return weight.to_buffer().to_numpy()


def _are_in_order(groups: npt.NDArray[np.int32]) -> bool:
    """Whether the first 128 columns are of group 0, the next ones of 1, and so on."""
    wanted = np.repeat(np.arange(groups.size // BLOCK), BLOCK)
    return np.array_equal(groups, wanted)


def _mlp(
    dtype: DType,
    encoding: QuantizationEncoding,
    hidden: int,
    wide: int,
    devices: Sequence[DeviceRef],
    **options: Any,
) -> MLP:
    # Takes what max.nn's MLP does.
    cls = StackedGPTQMLP if is_worth_stacking(hidden, wide) else MLP
    return cls(dtype, encoding, hidden, wide, devices, **options)


def _qkv(
    gptq: GPTQ,
    *,
    in_dim: int,
    out_dims: Sequence[int],
    names: Sequence[str],
    dtype: DType,
    device: DeviceRef,
    **_: Any,
) -> StackedGPTQQKV:
    # Takes what max.nn's StackedLinear does.
    dims = zip(names, out_dims, strict=True)
    return StackedGPTQQKV(
        {name: _linear(gptq, in_dim, wide, dtype, device) for name, wide in dims}
    )


def _linear(
    gptq: GPTQ, in_dim: int, out_dim: int, dtype: DType, device: DeviceRef, **_: Any
) -> GPTQLinear:
    # Takes what max.nn passes its ``linear_cls``.
    return GPTQLinear(
        in_dim,
        out_dim,
        dtype,
        device,
        quantization_encoding=QuantizationEncoding.GPTQ,
        quantization_config=QuantizationConfig(
            quant_method="gptq",
            bits=4,
            group_size=BLOCK,
            desc_act=gptq.desc_act,
            sym=True,
        ),
    )
