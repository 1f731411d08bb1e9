"""The tensors of a quantized checkpoint: their names, shapes and what becomes of them.

Projections in FP8 and NVFP4 have scales beside the weight; in GPTQ four tensors
stand in the weight's place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData

from ..errors import UserError
from ..quantization import BLOCK, FP8, GPTQ, NVFP4, Quantization, Scaled
from .names import ExpectedTensor

# What the checkpoints call a scale: Hugging Face's fp8; compressed-tensors,
# AutoFP8 and ModelOpt; Mistral's own format.
_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_INPUT_SCALES = ("activation_scale", "input_scale", "qscale_act")
# In NVFP4: ModelOpt; compressed-tensors, whose scales of a whole weight or input
# are what to divide by.
_NVFP4_WEIGHTS = ("weight", "weight_packed")
_NVFP4_WEIGHT_SCALES = ("weight_scale_2", "weight_global_scale")
_NVFP4_INPUT_SCALES = ("input_scale", "input_global_scale")
_DIVISORS = ("weight_global_scale", "input_global_scale")
_NO_SCALED_CACHE = "scales a KV cache in FP8, which MAX's has no scales for"
_KV_SCALES = (
    *("self_attn.k_scale", "self_attn.v_scale"),
    *("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    *("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    "self_attn.kv_scale",
    *(f"attention.{x}_fake_quantizer.qscale_act" for x in "qkv"),
)

FLOATS = (DType.float32, DType.bfloat16, DType.float16)
SCALED = (DType.float8_e4m3fn, DType.uint8)
"""What the projections' dtypes are in FP8 and in NVFP4."""
_DTYPES: dict[str, tuple[DType, ...]] = {
    "qweight": (DType.int32,),
    # MAX's kernel takes no others.
    "scales": (DType.float16,),
    "perm_idx": (DType.int32,),
}

Expected = dict[str, ExpectedTensor]


def is_projection(graph_name: str) -> bool:
    """Whether a weight of this name in the graph may be quantized."""
    return graph_name.endswith("_proj.weight")


def quantized_tensors(
    expected: Mapping[str, ExpectedTensor],
    found: Mapping[str, WeightData],
    quantization: Quantization,
) -> tuple[Expected, dict[str, str]]:
    """Returns what a quantized checkpoint must hold, and what is dropped and why.

    Args:
        expected: What it would hold if it were not quantized.
        found: Its tensors; in FP8 and NVFP4 their dtypes say which are quantized.
        quantization: How.
    """
    tensors: Expected = {}
    dropped: dict[str, str] = {}
    for name, tensor in expected.items():
        if not is_projection(tensor.graph):
            tensors[name] = tensor
        elif isinstance(quantization, GPTQ):
            tensors |= _gptq_tensors(name, tensor, quantization)
            dropped |= _gptq_dropped(name, found, quantization)
        elif isinstance(quantization, NVFP4):
            tensors |= _nvfp4_tensors(name, tensor, found, quantization)
        else:
            tensors[name] = tensor
            if name in found and found[name].dtype == DType.float8_e4m3fn:
                tensors |= _fp8_scales(name, tensor, found, quantization)
    if isinstance(quantization, Scaled):
        dropped |= {
            name: _NO_SCALED_CACHE for name in found if name.endswith(_KV_SCALES)
        }
    return tensors, dropped


def _fp8_scales(
    name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData], fp8: FP8
) -> Iterator[tuple[str, ExpectedTensor]]:
    rows, columns = tensor.shape
    shape: tuple[int, ...] = {
        "tensor": (),
        "channel": (rows, 1),
        "block": (math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)),
    }[fp8.scales]
    yield _spelled(name, tensor, found, "weight_scale", _WEIGHT_SCALES, shape)
    if fp8.static:
        yield _spelled(name, tensor, found, "input_scale", _INPUT_SCALES, ())


def _nvfp4_tensors(
    name: str, tensor: ExpectedTensor, found: Mapping[str, WeightData], nvfp4: NVFP4
) -> Iterator[tuple[str, ExpectedTensor]]:
    if name in found and found[name].dtype in FLOATS:
        yield name, tensor
        return
    rows, columns = tensor.shape
    groups = (rows, math.ceil(columns / nvfp4.group_size))
    packed = (rows, columns // 2)
    yield _spelled(name, tensor, found, "weight", _NVFP4_WEIGHTS, packed)
    yield _spelled(name, tensor, found, "weight_scale", ("weight_scale",), groups)
    yield _spelled(name, tensor, found, "weight_scale_2", _NVFP4_WEIGHT_SCALES, ())
    yield _spelled(name, tensor, found, "input_scale", _NVFP4_INPUT_SCALES, ())


def _spelled(
    name: str,
    tensor: ExpectedTensor,
    found: Mapping[str, WeightData],
    role: str,
    spellings: Collection[str],
    shape: tuple[int, ...],
) -> tuple[str, ExpectedTensor]:
    """What a part of a projection is called in a checkpoint, and is to be."""
    stem, graph = name.removesuffix("weight"), tensor.graph.removesuffix("weight")
    names = [stem + spelling for spelling in spellings]
    present = next((n for n in names if n in found), names[0])
    if present in found:
        # One scale may be stored as [] or [1], a column as [rows].
        stored = tuple(int(d) for d in found[present].shape)
        alike = [(1,)] if shape == () else [shape[:1]] if shape[1] == 1 else []
        shape = stored if stored in alike else shape
    return present, ExpectedTensor(graph + role, shape)


def _gptq_tensors(
    name: str, tensor: ExpectedTensor, gptq: GPTQ
) -> Iterator[tuple[str, ExpectedTensor]]:
    rows, columns = tensor.shape
    stem, graph = name.removesuffix("weight"), tensor.graph.removesuffix("weight")
    # Eight weights of 4 bits in an int32, and transposed.
    yield stem + "qweight", ExpectedTensor(graph + "qweight", (columns // 8, rows))
    yield (
        stem + "scales",
        ExpectedTensor(graph + "scales", (columns // gptq.group_size, rows)),
    )
    if gptq.desc_act:
        yield stem + "g_idx", ExpectedTensor(graph + "perm_idx", (columns,))


def _gptq_dropped(
    name: str, found: Mapping[str, WeightData], gptq: GPTQ
) -> Iterator[tuple[str, str]]:
    stem = name.removesuffix("weight")
    yield stem + "qzeros", "8, since the weights are symmetric"
    if not gptq.desc_act:
        yield stem + "g_idx", "column / group_size, since desc_act is false"
    bias = found.get(stem + "bias")
    if bias is not None and bias.dtype in FLOATS and not _in_float32(bias).any():
        yield stem + "bias", "zero"


def convert_quantized(
    graph_name: str,
    weight: WeightData,
    quantization: Quantization,
    dtype: DType,
    source: str,
) -> WeightData:
    """Returns a tensor as the graph wants it.

    Args:
        graph_name: Its name in the graph.
        weight: As it is in the checkpoint.
        quantization: How the checkpoint is quantized.
        dtype: Of what is not quantized.
        source: What to call the checkpoint in a message.

    Raises:
        UserError: (a ``ValueError``) naming a tensor whose dtype does not fit.
    """
    role = graph_name.rpartition(".")[2]
    kinds: Collection[DType] = _DTYPES.get(role, FLOATS)
    groups = isinstance(quantization, NVFP4) and role == "weight_scale"
    if groups:
        kinds = (DType.float8_e4m3fn,)
    elif is_projection(graph_name):
        packed = isinstance(quantization, NVFP4)
        kinds = (DType.uint8 if packed else DType.float8_e4m3fn, *FLOATS)
    check_dtype(weight, kinds, source)
    if role == "perm_idx":
        # Which column each of the weight's rows is of.
        order = np.argsort(weight.to_buffer().to_numpy(), kind="stable")
        return WeightData.from_numpy(order.astype(np.int32), graph_name)
    if role in ("weight_scale", "weight_scale_2", "input_scale") and not groups:
        return _scale(weight)
    if role == "weight" and weight.dtype not in SCALED:
        return weight.astype(dtype)
    return weight


def check_dtype(weight: WeightData, kinds: Collection[DType], source: str) -> None:
    """Raises a ``UserError`` that names a tensor whose dtype is none of ``kinds``."""
    if weight.dtype not in kinds:
        raise UserError(
            f"{weight.name} of {source} is {weight.dtype.name}; by its config.json "
            f"it should be {' or '.join(kind.name for kind in kinds)}."
        )


def _scale(weight: WeightData) -> WeightData:
    """A scale in float32, to multiply with: ``[]`` or a column."""
    scale = _in_float32(weight)
    if scale.ndim == 1:
        # [1] -> [], [rows] -> [rows, 1]
        scale = scale.reshape(() if len(scale) == 1 else (-1, 1))
    if weight.name.endswith(_DIVISORS):
        scale = np.float32(1) / scale
    # NumPy makes scalars of arrays without dimensions.
    return WeightData.from_numpy(np.asarray(scale), weight.name)


def _in_float32(weight: WeightData) -> npt.NDArray[np.float32]:
    """A float tensor's values, for which ``max warm-cache`` has no ``astype``."""
    raw = weight.to_buffer()
    if weight.dtype == DType.bfloat16:
        # NumPy has none: it is the upper half of a float32.
        upper = raw.view(DType.uint16, raw.shape).to_numpy().astype(np.uint32)
        return np.asarray(upper << 16).view(np.float32)
    return raw.to_numpy().astype(np.float32)
