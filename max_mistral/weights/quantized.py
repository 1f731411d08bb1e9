"""The tensors of a quantized checkpoint: their names, shapes and what becomes of them.

Projections in FP8 and NVFP4 have scales beside the weight; in GPTQ four tensors
stand in the weight's place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from max.dtype import DType
from max.graph.weights import WeightData
from max.nn.quant_config import NVFP4_BLOCK_SIZE

from ..errors import UserError
from ..quantization import BLOCK, FP8, GPTQ, NVFP4, Quantization, Scaled
from .names import ExpectedTensor
from .scales import in_float32, read_scale

# What the checkpoints call a scale: Hugging Face's fp8; compressed-tensors,
# AutoFP8 and ModelOpt; Mistral's own format.
_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_INPUT_SCALES = ("activation_scale", "input_scale", "qscale_act")
# The parts of a weight in NVFP4 as ModelOpt and MAX call them, and
# compressed-tensors.
_NVFP4_PARTS = {
    "weight": "weight_packed",
    "weight_scale": "weight_scale",
    "weight_scale_2": "weight_global_scale",
    "input_scale": "input_global_scale",
}
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

    Raises:
        UserError: (a ``ValueError``) naming a tensor that is quantized and no
            projection.
    """
    tensors: Expected = {}
    dropped: dict[str, str] = {}
    for name, tensor in expected.items():
        if not is_projection(tensor.graph):
            _check_not_quantized(name, found)
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


def _check_not_quantized(name: str, found: Mapping[str, WeightData]) -> None:
    for part in (name + "_scale", name + "_packed"):
        if part in found:
            raise UserError(
                f"{name} is quantized (there is {part}); max_mistral supports that "
                "of the projections of the blocks only."
            )


def check_known(
    quantization: Quantization | None,
    scheme: str,
    found: Mapping[str, WeightData],
    source: str,
) -> None:
    """Raises a ``UserError`` if it is not known how to read quantized tensors.

    Args:
        quantization: What the checkpoint's config says.
        scheme: Whose names the tensors have, as of :mod:`.names`.
        found: The tensors.
        source: What to call the checkpoint in a message.
    """
    if quantization is None:
        for weight in found.values():
            if weight.dtype in SCALED:
                raise UserError(
                    f"{weight.name} of {source} is {weight.dtype.name}, but neither "
                    "config.json has a quantization_config nor is there a "
                    "hf_quant_config.json. Fetch the file that belongs to the "
                    "checkpoint."
                )
    # Scales of rows would have to be reordered with the rows of Q and K.
    elif scheme == "native" and getattr(quantization, "scales", None) != "tensor":
        raise UserError(
            f"{source} is quantized and has Mistral's own names; max_mistral supports "
            "that in FP8 with one scale a tensor only. Use the checkpoint with "
            "Hugging Face's names."
        )


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
    shapes: dict[str, tuple[int, ...]] = {
        "weight": (rows, columns // 2),
        "weight_scale": (rows, math.ceil(columns / NVFP4_BLOCK_SIZE)),
        "weight_scale_2": (),
        "input_scale": (),
    }
    for role, compressed in _NVFP4_PARTS.items():
        spelling = compressed if nvfp4.compressed else role
        yield _spelled(name, tensor, found, role, [spelling], shapes[role])


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
    if bias is not None and bias.dtype in FLOATS and not in_float32(bias).any():
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
        inverse = isinstance(quantization, NVFP4) and quantization.compressed
        divides = inverse or role == "input_scale"
        return read_scale(weight, source, divides=divides, inverse=inverse)
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
