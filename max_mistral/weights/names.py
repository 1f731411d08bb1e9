"""The one table of weight names: full names, no patterns, no substrings.

Each row gives a tensor's name in the graph, in a Hugging Face checkpoint, in
Mistral's own format and in a GGUF file, and its shape in the letters of
:func:`dimensions`. ``{i}`` stands for the layer. Sources: HF
``modeling_mistral.py``; mistral-inference ``transformer_layers.py``; llama.cpp
``gguf-py/gguf/constants.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..hf_config import head_dim, text_config


@dataclass(frozen=True)
class TensorName:
    """One tensor, by its names and its shape."""

    graph: str
    huggingface: str
    native: str
    gguf: str
    shape: str


TENSORS = (
    TensorName(
        "embed_tokens.weight",
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        "token_embd.weight",
        "VH",
    ),
    TensorName(
        "layers.{i}.input_layernorm.weight",
        "model.layers.{i}.input_layernorm.weight",
        "layers.{i}.attention_norm.weight",
        "blk.{i}.attn_norm.weight",
        "H",
    ),
    TensorName(
        "layers.{i}.self_attn.q_proj.weight",
        "model.layers.{i}.self_attn.q_proj.weight",
        "layers.{i}.attention.wq.weight",
        "blk.{i}.attn_q.weight",
        "QH",
    ),
    TensorName(
        "layers.{i}.self_attn.k_proj.weight",
        "model.layers.{i}.self_attn.k_proj.weight",
        "layers.{i}.attention.wk.weight",
        "blk.{i}.attn_k.weight",
        "KH",
    ),
    TensorName(
        "layers.{i}.self_attn.v_proj.weight",
        "model.layers.{i}.self_attn.v_proj.weight",
        "layers.{i}.attention.wv.weight",
        "blk.{i}.attn_v.weight",
        "KH",
    ),
    TensorName(
        "layers.{i}.self_attn.o_proj.weight",
        "model.layers.{i}.self_attn.o_proj.weight",
        "layers.{i}.attention.wo.weight",
        "blk.{i}.attn_output.weight",
        "HQ",
    ),
    TensorName(
        "layers.{i}.post_attention_layernorm.weight",
        "model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.ffn_norm.weight",
        "blk.{i}.ffn_norm.weight",
        "H",
    ),
    TensorName(
        "layers.{i}.mlp.gate_proj.weight",
        "model.layers.{i}.mlp.gate_proj.weight",
        "layers.{i}.feed_forward.w1.weight",
        "blk.{i}.ffn_gate.weight",
        "FH",
    ),
    TensorName(
        "layers.{i}.mlp.up_proj.weight",
        "model.layers.{i}.mlp.up_proj.weight",
        "layers.{i}.feed_forward.w3.weight",
        "blk.{i}.ffn_up.weight",
        "FH",
    ),
    TensorName(
        "layers.{i}.mlp.down_proj.weight",
        "model.layers.{i}.mlp.down_proj.weight",
        "layers.{i}.feed_forward.w2.weight",
        "blk.{i}.ffn_down.weight",
        "HF",
    ),
    TensorName(
        "norm.weight", "model.norm.weight", "norm.weight", "output_norm.weight", "H"
    ),
    TensorName(
        "lm_head.weight", "lm_head.weight", "output.weight", "output.weight", "VH"
    ),
)

EMBEDDING, HEAD = TENSORS[0], TENSORS[-1]

# What a checkpoint may carry beside the table, and why it is not needed.
DROPPED = {
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": "computed from rope_theta",
    "rope_freqs.weight": "read with the config: see GGUFCheckpoint.rope_scaling",
}

# A vision-language checkpoint keeps its text tower under one of two prefixes
# (Hugging Face) or none (native), and beside it what only images need.
TEXT_TOWERS = ("language_model.", "model.language_model.")
_IMAGE_TOWERS = {
    "huggingface": (
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
    "native": (
        "vision_encoder.",
        "vision_language_adapter.",
        "patch_merger.",
        "pre_mm_projector_norm.",
    ),
}


def dimensions(config: PretrainedConfig) -> dict[str, int]:
    """Returns the sizes that the letters of a shape stand for."""
    config = text_config(config)
    return {
        "V": config.vocab_size,
        "H": config.hidden_size,
        "F": config.intermediate_size,
        "Q": config.num_attention_heads * head_dim(config),
        "K": config.num_key_value_heads * head_dim(config),
    }


def in_text_tower(name: str, tower: str) -> str:
    """Returns a text model's name as the checkpoint of ``tower`` spells it.

    Args:
        name: A Hugging Face name such as ``model.norm.weight``.
        tower: One of :data:`TEXT_TOWERS`, or ``""`` for a text-only checkpoint.
    """
    if tower != "model.language_model.":
        return tower + name
    # transformers 5 moved the tower inside the model and left the head out.
    inside = name.startswith("model.")
    return tower + name.removeprefix("model.") if inside else name


def find_text_tower(names: Collection[str]) -> str:
    """Returns the prefix of :data:`TEXT_TOWERS` that ``names`` use, or ``""``."""
    for tower in TEXT_TOWERS:
        if any(name.startswith(tower) for name in names):
            return tower
    return ""


def image_towers(scheme: str, tower: str) -> tuple[str, ...]:
    """Returns what the names of a checkpoint's image towers begin with.

    Args:
        scheme: Whose names its tensors have.
        tower: The prefix of its text tower, if it has one.
    """
    return _IMAGE_TOWERS.get(scheme, ()) if tower or scheme == "native" else ()


def find_scheme(names: Collection[str], config: PretrainedConfig) -> str:
    """Returns the scheme of most names: ``"native"``, ``"graph"`` or ``"huggingface"``.

    A model without a head, saved by itself, has the graph's: Hugging Face's
    without ``model.``.
    """
    for scheme in ("native", "graph"):
        expected = expected_tensors(config, scheme, tied=False).keys()
        if 2 * len(expected & set(names)) > len(expected):
            return scheme
    return "huggingface"


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor that the checkpoint must have."""

    graph: str
    shape: tuple[int, ...]


def expected_tensors(
    config: PretrainedConfig, scheme: str, *, tied: bool, tower: str = ""
) -> dict[str, ExpectedTensor]:
    """Returns what a checkpoint of this config must hold, by its own names.

    Args:
        config: The HF config, which gives layers and shapes.
        scheme: ``"huggingface"``, ``"native"``, ``"gguf"`` or ``"graph"``:
            whose names are the keys.
        tied: Whether the head is the embedding, or there is none, and so no
            tensor of its own.
        tower: The prefix that :func:`find_text_tower` found.
    """
    sizes = dimensions(config)
    return {
        in_text_tower(getattr(row, scheme).format(i=i), tower): ExpectedTensor(
            row.graph.format(i=i), tuple(sizes[letter] for letter in row.shape)
        )
        for row in TENSORS
        if not (tied and row is HEAD)
        for i in _layers(row.graph, config)
    }


def dropped_tensors(
    config: PretrainedConfig, scheme: str, *, tied: bool, tower: str = ""
) -> dict[str, str]:
    """Returns the tensors that a checkpoint may also hold, and why they are dropped.

    Args:
        config: As :func:`expected_tensors` takes it, like those that follow.
        scheme: Whose names the keys are.
        tied: Whether the head is the embedding, or there is none.
        tower: The prefix of the text tower, if there is one.
    """
    bare = "model." if scheme == "graph" else ""
    dropped = {
        name.removeprefix(bare).format(i=i): reason
        for name, reason in DROPPED.items()
        for i in _layers(name, config)
    }
    if tied:
        dropped[getattr(HEAD, scheme)] = "tied to the embedding, or not used"
    return {in_text_tower(name, tower): reason for name, reason in dropped.items()}


def _layers(name: str, config: PretrainedConfig) -> range:
    return range(text_config(config).num_hidden_layers if "{i}" in name else 1)
