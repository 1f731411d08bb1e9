"""MAX's weight adapters: from a checkpoint's tensors to the graph's.

Safetensors, in one file or several, under HF's names or Mistral's own; and GGUF.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData, Weights, WeightsAdapter, WeightsFormat
from max.pipelines.lib import PipelineConfig
from transformers import PretrainedConfig

from . import switches
from .encoding import activation_dtype
from .errors import UserError
from .formats import WeightFormat
from .formats.restored import RestoredWeights
from .formats.tensors import check_known, quantized_tensors
from .hf_quantization import read_quantization
from .kernels import KernelMode
from .kernels.packing import Encoding
from .progress import progress
from .sharing import Sharing
from .weights.check_names import check_tensors
from .weights.dtypes import FLOATS, cast, check_dtype
from .weights.finite import check_weight
from .weights.gguf_file import GGUFCheckpoint
from .weights.heads import copy_kv_heads, on_rows, rotary_heads, split_rotary
from .weights.kept import KeptMatrices
from .weights.names import (
    EMBEDDING,
    HEAD,
    ExpectedTensor,
    dropped_tensors,
    expected_tensors,
    find_scheme,
    find_text_tower,
    image_towers,
    in_text_tower,
)
from .weights.packed import ENCODINGS, PackedWeight, on_cpu, pack_matrix, runs_packed
from .weights.safetensors_file import stored_tensors
from .weights.unchanged import check_unchanged, state_of

logger = logging.getLogger("max.pipelines")


def convert_safetensor_state_dict(
    state_dict: Mapping[str, Weights],
    huggingface_config: PretrainedConfig,
    pipeline_config: PipelineConfig,
    kernel_mode: KernelMode | None = None,
    headless: bool = False,
    **_: Any,
) -> dict[str, WeightData]:
    """Renames a checkpoint's tensors to the graph's and casts them to its dtype.

    What is quantized keeps its dtype.

    Args:
        state_dict: The tensors by their names in the checkpoint.
        huggingface_config: Gives the names and shapes that must be there.
        pipeline_config: Gives the encoding that MAX resolved.
        kernel_mode: Which CPU kernels run; by default what the environment says.
        headless: Whether the model has no use for a head.

    Raises:
        UserError: (a ``ValueError``) naming what is missing, unknown,
            misshapen, of a dtype that does not run, not finite, or the file
            that is truncated or changes as it is read.
    """
    paths = pipeline_config.model.resolved_weight_paths()
    state = state_of(paths)
    stored = stored_tensors(paths)
    source = pipeline_config.model.model_path
    quantization = read_quantization(
        huggingface_config, pipeline_config.model.quantization_encoding
    )
    scheme, tensors, expected = _checked(
        state_dict, huggingface_config, quantization, source, headless
    )
    dtype = activation_dtype(pipeline_config.model)
    packed = runs_packed(pipeline_config, kernel_mode)
    restored: RestoredWeights | None = None
    if quantization is not None and quantization.is_restored(
        on_cpu=on_cpu(pipeline_config)
    ):
        keep = f", twice the memory; {switches.FP8}=keep leaves them as they are"
        logger.info(
            "The %s weights become bfloat16 at load%s",
            *(quantization.NAME, "" if on_cpu(pipeline_config) else keep),
        )
        restored = RestoredWeights(quantization, expected, tensors, dtype, source)
        expected, quantization = restored.tensors, None
    how = repr(restored.weight_format) if restored is not None else ""
    kept = KeptMatrices.of(paths, how, state) if packed else KeptMatrices()
    weights: dict[str, WeightData] = {}
    items: Iterable[tuple[str, ExpectedTensor]] = expected.items()
    if packed or restored is not None:
        items = progress(expected.items(), "Loading weights", "tensors")
    for name, tensor in items:
        found = tensors[name]
        restore = restored.bytes_of(name, stored[name]) if restored else None
        heads = None  # HF's order already
        if scheme == "native":
            heads = rotary_heads(tensor.graph, huggingface_config)
        if quantization is None and restore is None:
            check_dtype(found, FLOATS, source)
        if len(tensor.shape) == 2 and packed:
            encoding = Encoding.BF16 if restore else ENCODINGS[found.dtype]
            weights[tensor.graph] = pack_matrix(
                tensor.graph,
                restore or stored[name],
                tensor.shape,
                encoding,
                name,
                source,
                heads,
                kept,
            )
            continue
        if restore is not None:
            found = _bfloat16(name, restore(), tensor.shape)
        stored_weight = found
        if heads is not None:
            found = on_rows(found, partial(split_rotary, heads=heads))
        weights[tensor.graph] = (
            cast(found, dtype)
            if quantization is None
            else quantization.convert(tensor.graph, found, dtype, source)
        )
        # After a format's own checks, which know what a scale may be.
        check_weight(stored_weight, source)
    sharing = Sharing.of(huggingface_config, pipeline_config.model)
    weights = copy_kv_heads(weights, sharing)
    # Each tensor was read by itself, of the version that then was there. What MAX has
    # mapped and copies to a GPU it reads again, after this.
    check_unchanged(paths, state)
    kept.read_ahead()
    return weights


def convert_gguf_state_dict(
    state_dict: Mapping[str, Weights],
    huggingface_config: PretrainedConfig,
    pipeline_config: PipelineConfig,
    kernel_mode: KernelMode | None = None,
    headless: bool = False,
    **_: Any,
) -> dict[str, WeightData]:
    """Reads the file itself: MAX's own reader lacks half of the types.

    Args:
        state_dict: The tensors as MAX found them; not used.
        huggingface_config: Gives the names and shapes that must be there.
        pipeline_config: Gives the file, the devices and the encoding.
        kernel_mode: Which CPU kernels run; by default what the environment says.
        headless: Whether the model has no use for a head.

    Raises:
        UserError: (a ``ValueError``) if the file is no complete GGUF file of a
            Mistral, does not fit the config or changes as it is read, or there are
            several files.
    """
    paths = pipeline_config.model.resolved_weight_paths()
    if len(paths) != 1:
        raise UserError(
            f"--weight-path names {len(paths)} GGUF files; max_mistral reads one. "
            "Merge a split file with llama.cpp's llama-gguf-split --merge."
        )
    dtype = activation_dtype(pipeline_config.model)
    state = state_of(paths)
    checkpoint = GGUFCheckpoint(paths[0], vocabulary=False)
    packed = runs_packed(pipeline_config, kernel_mode)
    kept = KeptMatrices.of(paths, state=state) if packed else KeptMatrices()
    found = checkpoint.weights(
        huggingface_config, packed=packed, headless=headless, kept=kept
    )
    weights = {
        name: weight if isinstance(weight, PackedWeight) else cast(weight, dtype)
        for name, weight in found
    }
    sharing = Sharing.of(huggingface_config, pipeline_config.model)
    weights = copy_kv_heads(weights, sharing)
    check_unchanged(paths, state)
    kept.read_ahead()
    return weights


def _checked(
    state_dict: Mapping[str, Weights],
    huggingface_config: PretrainedConfig,
    quantization: WeightFormat | None,
    source: str,
    headless: bool,
) -> tuple[str, dict[str, WeightData], dict[str, ExpectedTensor]]:
    """Names against those that must be there.

    Returns:
        Whose names they are, the text model's tensors, and what becomes of each.
    """
    scheme = find_scheme(state_dict, huggingface_config)
    tower = find_text_tower(state_dict)
    images = image_towers(scheme, tower)
    tensors = {
        name: weight.data()
        for name, weight in state_dict.items()
        if not name.startswith(images)
    }
    tied = headless or (
        huggingface_config.tie_word_embeddings
        and not _has_own_head(tensors, scheme, tower)
    )
    expected = expected_tensors(huggingface_config, scheme, tied=tied, tower=tower)
    dropped = dropped_tensors(huggingface_config, scheme, tied=tied, tower=tower)
    check_known(quantization, scheme, tensors, source)
    if quantization is not None:
        expected, more = quantized_tensors(expected, tensors, quantization)
        dropped |= more
    check_tensors(
        {n: tuple(int(d) for d in t.shape) for n, t in tensors.items()},
        expected,
        dropped,
        source,
    )
    return scheme, tensors, expected


def _bfloat16(
    name: str, data: npt.NDArray[np.uint8], shape: tuple[int, ...]
) -> WeightData:
    buffer = Buffer.from_numpy(data).view(DType.bfloat16, shape)
    return WeightData(buffer, name, DType.bfloat16, Shape(shape))


def _has_own_head(tensors: Mapping[str, WeightData], scheme: str, tower: str) -> bool:
    """Whether a head is there that is no copy of the embedding.

    Then ``tie_word_embeddings`` is wrong and the head counts, as in
    transformers (``modeling_utils.py``, ``tie_weights``).
    """
    head, embedding = (
        tensors.get(in_text_tower(getattr(row, scheme), tower))
        for row in (HEAD, EMBEDDING)
    )
    if head is None or embedding is None:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    return not np.array_equal(_raw_bytes(head), _raw_bytes(embedding))


def _raw_bytes(tensor: WeightData) -> npt.NDArray[np.uint8]:
    buffer = tensor.to_buffer()
    size = buffer.num_elements * buffer.dtype.size_in_bytes
    return buffer.view(DType.uint8, (size,)).to_numpy()


WEIGHT_ADAPTERS: dict[WeightsFormat, WeightsAdapter] = {
    WeightsFormat.safetensors: convert_safetensor_state_dict,
    WeightsFormat.gguf: convert_gguf_state_dict,
}
