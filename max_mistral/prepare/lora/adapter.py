"""A PEFT adapter: its tensors, held against ``adapter_config.json`` and the base.

Source of the names: PEFT 0.21, ``peft/utils/save_and_load.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from transformers import PretrainedConfig

from ...errors import UserError, shown
from ...fields import read_json
from ...weights.gguf_encode import dequantize_rows
from ...weights.names import EMBEDDING, TEXT_TOWERS, expected_tensors, image_towers
from ...weights.safetensors_file import SafeTensor, read_tensors
from .config import AdapterConfig
from .maths import Values, merge

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

FLOATS = {
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}
_PREFIX = "base_model.model."
# PEFT's target_modules name modules of the image tower too: it has a q_proj as well.
_IMAGES = tuple(
    f"{_PREFIX}{tower}" for tower in image_towers("huggingface", TEXT_TOWERS[0])
)
# What a name ends in, and what the tensor is; the longest first.
_ENDINGS = {
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_embedding_A": "embedding a",
    ".lora_embedding_B": "embedding b",
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".modules_to_save.weight": "whole",
    ".base_layer.weight": "whole",
    ".weight": "whole",
}


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor of the model."""

    whole: SafeTensor | None = None
    """Stands in for the base's."""
    a: SafeTensor | None = None
    b: SafeTensor | None = None
    magnitude: SafeTensor | None = None
    scale: float = 1.0
    embedding: bool = False

    def apply(self, weight: Values) -> Values:
        """Returns the tensor with the change made, of the same shape."""
        if self.whole is not None:
            weight = read_floats(self.whole)
        if self.a is None or self.b is None:
            return weight
        magnitude = read_floats(self.magnitude) if self.magnitude else None
        return merge(
            weight,
            read_floats(self.a),
            read_floats(self.b),
            self.scale,
            magnitude,
            embedding=self.embedding,
        )


def read_floats(tensor: SafeTensor) -> Values:
    """Returns the values of a tensor whose dtype is one of :data:`FLOATS`."""
    ggml_type = FLOATS[tensor.dtype]
    return dequantize_rows(tensor.stored.read(), ggml_type, tensor.shape)


def read_adapter(
    folder: Path, config: PretrainedConfig, strength: float = 1.0
) -> dict[str, Change]:
    """Returns an adapter's changes by the tensors' names in the graph.

    Args:
        folder: Has ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: The base's HF config, which gives the names and shapes.
        strength: What the scale of every low-rank pair is multiplied by.

    Raises:
        UserError: (a ``ValueError``) naming what cannot be merged, or does not
            fit the base or ``adapter_config.json``.
        OSError: If a file cannot be read.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}. Give the folder that PEFT's "
                "save_pretrained wrote, with safetensors."
            )
    found = read_json(folder / CONFIG)
    adapter = AdapterConfig(str(folder / CONFIG), found)
    modules = _modules(config)
    text, images = _read_tensors(folder)
    parts = _sort_tensors(folder / WEIGHTS, text, modules)
    shapes = expected_tensors(config, "graph", tied=False)
    changes: dict[str, Change] = {}
    for graph, (module, part) in parts.items():
        embedding = graph == EMBEDDING.graph
        adapter.check_module(module, part, embedding=embedding)
        adapter.check_shapes(module, part, shapes[graph].shape, embedding=embedding)
        changes[graph] = Change(
            part.get("whole"),
            part.get("embedding a") or part.get("a"),
            part.get("embedding b") or part.get("b"),
            part.get("magnitude"),
            strength * adapter.scale(module),
            embedding,
        )
    left_out = [name.removeprefix(_PREFIX) for name in images]
    adapter.check_complete([module for module, _ in parts.values()], modules, left_out)
    return changes


def note_images(folder: Path) -> list[str]:
    """Returns a line for the user if an adapter has tensors of an image tower.

    Raises:
        UserError: (a ``ValueError``) as :func:`read_adapter` does.
    """
    _, images = _read_tensors(folder)
    if not images:
        return []
    return [
        f"The adapter's tensors for images are left out ({len(images)}): max_mistral "
        "reads texts. What the new folder has for images is the base's."
    ]


def _read_tensors(folder: Path) -> tuple[dict[str, SafeTensor], dict[str, SafeTensor]]:
    """An adapter's tensors by their names: of texts, and of images alone."""
    path = folder / WEIGHTS
    tensors = read_tensors([path])
    images = {n: t for n, t in tensors.items() if n.startswith(_IMAGES)}
    if images and len(images) == len(tensors):
        raise UserError(
            f"{path} has tensors for images alone ({len(images)}), and max_mistral "
            "reads texts: nothing would change. Expected some of the text model's. "
            "Give another adapter, or use the base without one."
        )
    return {n: t for n, t in tensors.items() if n not in images}, images


def _modules(config: PretrainedConfig) -> dict[str, str]:
    """The tensor in the graph by each spelling of its module in an adapter."""
    modules = {}
    for tower in ("", *TEXT_TOWERS):
        for name, tensor in expected_tensors(
            config, "huggingface", tied=False, tower=tower
        ).items():
            modules[name.removesuffix(".weight")] = tensor.graph
            if not tower:
                # An adapter of a bare MistralModel.
                bare = name.removeprefix("model.").removesuffix(".weight")
                modules[bare] = tensor.graph
    return modules


def _sort_tensors(
    path: Path, tensors: Mapping[str, SafeTensor], modules: Mapping[str, str]
) -> dict[str, tuple[str, dict[str, SafeTensor]]]:
    """The adapter's tensors by what they change, with its module's name there."""
    parts: dict[str, tuple[str, dict[str, SafeTensor]]] = {}
    for name, tensor in tensors.items():
        ending = next(filter(name.endswith, _ENDINGS), None)
        module = name.removeprefix(_PREFIX).removesuffix(ending or "")
        graph = modules.get(module)
        if not name.startswith(_PREFIX) or ending is None or graph is None:
            raise UserError(
                f"{path} has {shown(name)}, which max_mistral cannot merge: no "
                "low-rank pair, magnitude or whole weight of a module of the base. "
                "Give the base that the adapter was trained on; of adapters only LoRA "
                "and DoRA can be merged."
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{path} has {name} in {tensor.dtype}; max_mistral merges "
                f"{', '.join(FLOATS)}. Save the adapter again in one of these."
            )
        if not np.isfinite(read_floats(tensor)).all():
            raise UserError(
                f"{path} has {name} with values that are not finite: the training "
                "went wrong, or the file is damaged. Fetch it again, or train anew."
            )
        if _ENDINGS[ending] in parts.setdefault(graph, (module, {}))[1]:
            raise UserError(
                f"{path} has {name} twice, in two spellings. Save the adapter again "
                "with PEFT."
            )
        parts[graph][1][_ENDINGS[ending]] = tensor
    return parts
