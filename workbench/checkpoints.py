"""Tiny seeded Mistral checkpoints, written without torch.

The tokenizer is byte-level with as many tokens as the model has, because MAX
stops a request whose token the tokenizer does not know.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig

from max_mistral.tekken import PATTERN
from max_mistral.weights.names import expected_tensors

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

BASE: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}

# The parity cross product, in few graphs: every feature is on in some and off
# in others. Windows are no smaller than MAX's CPU kernel takes.
CONFIGS: dict[str, dict[str, Any]] = {
    # head_dim 32 != hidden / heads = 24
    "gqa": BASE,
    "mha_tied": BASE
    | {
        "num_key_value_heads": 4,
        "head_dim": None,
        "hidden_size": 128,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    },
    # A window on every layer, an odd one.
    "window": BASE | {"sliding_window": 131, "max_position_embeddings": 1024},
    # A window on three of four layers, as Ministral 8B has them.
    "ministral": BASE
    | {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "num_hidden_layers": 4,
        "sliding_window": 128,
        "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    # YaRN and scaled queries; the scale is 1 below the original context, so
    # that is shrunk until the prompts outgrow it.
    "ministral3": BASE
    | {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    # The family's head_dim, for which a GPU has attention kernels of its own,
    # behind a full and a windowed layer.
    "head_dim_128": BASE
    | {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "hidden_size": 256,
        "intermediate_size": 512,
        "head_dim": 128,
        "num_hidden_layers": 2,
        "sliding_window": 128,
        "layer_types": ["full_attention", "sliding_attention"],
        "max_position_embeddings": 1024,
    },
}


def make_tensors(
    config: dict[str, Any], seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Returns random weights by their Hugging Face names.

    Scaled so that attention is far from uniform and no two logits are close:
    a mistake anywhere moves the output.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    expected = expected_tensors(
        AutoConfig.for_model(**config),
        "huggingface",
        tied=config["tie_word_embeddings"],
    )
    for name, tensor in expected.items():
        if len(tensor.shape) == 1:
            values = rng.uniform(0.5, 1.5, tensor.shape)
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            values = rng.standard_normal(tensor.shape) * gain
            values /= np.sqrt(tensor.shape[1])
        tensors[name] = values.astype(np.float32)
    return tensors


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: str = "float32",
    shards: int = 1,
    tensors: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Writes config, weights and tokenizer into ``folder`` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    tensors = make_tensors(config) if tensors is None else tensors
    # A test may put None there, for tensors as they are.
    cast = {name: t.astype(DTYPES[dtype] or t.dtype) for name, t in tensors.items()}
    if shards == 1:
        save_file(cast, folder / "model.safetensors", {"format": "pt"})
    else:
        _write_shards(folder, cast, shards)
    write_tokenizer(folder, config["vocab_size"])
    return folder


def write_headless(folder: Path, config: dict[str, Any], **kwargs: Any) -> Path:
    """Writes the checkpoint as ``MistralModel.save_pretrained`` does, as published
    embedding models are: without a head, and without ``model.`` before the names."""
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in make_tensors(config).items()
        if name != "lm_head.weight"
    }
    headless = config | {"architectures": ["MistralModel"]}
    return write_checkpoint(folder, headless, tensors=tensors, **kwargs)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    kind: GGMLQuantizationType,
    metadata: dict[str, int | str] | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Writes a checkpoint's tensors as llama.cpp has them, without a tokenizer.

    Returns them by Hugging Face's names, as the file's encoding rounds them.

    Args:
        path: The file.
        config: The checkpoint's.
        kind: How its matrices are encoded.
        metadata: Goes into the file too.
    """
    writer = GGUFWriter(path, "llama")
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    schemes = [
        expected_tensors(
            AutoConfig.for_model(**config), scheme, tied=config["tie_word_embeddings"]
        )
        for scheme in ("huggingface", "gguf")
    ]
    tensors = make_tensors(config)
    for name, new in zip(*schemes, strict=True):
        if tensors[name].ndim == 2:
            encoded = quantize(tensors[name], kind)
            tensors[name] = dequantize(encoded, kind)
        values = tensors[name]
        if new.endswith(("attn_q.weight", "attn_k.weight")):
            values = interleave(values, values.shape[0] // config["head_dim"])
        if values.ndim == 2:
            writer.add_tensor(new, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _write_shards(folder: Path, tensors: dict[str, Any], shards: int) -> None:
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def interleave(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rotary halves alternate, as in Mistral's format and llama.cpp's: the
    inverse of split_rotary."""
    rows, hidden = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, hidden)
    return halves.swapaxes(1, 2).reshape(rows, hidden)


def to_native(
    config: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Returns Hugging Face's tensors as Mistral's own format has them."""
    names = [
        expected_tensors(
            AutoConfig.for_model(**config), scheme, tied=config["tie_word_embeddings"]
        )
        for scheme in ("huggingface", "native")
    ]
    native = {}
    for name, (new, tensor) in zip(names[0], names[1].items(), strict=True):
        values = tensors[name]
        if new.endswith((".wq.weight", ".wk.weight")):
            values = interleave(values, tensor.shape[0] // config["head_dim"])
        native[new] = np.ascontiguousarray(values)
    return native


def write_native(
    folder: Path, config: dict[str, Any], *, dtype: str = "float32", shards: int = 1
) -> Path:
    """Writes params.json, consolidated shards and tekken.json into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": config["rope_theta"],
        "max_seq_len": config["max_position_embeddings"],
        "tied_embeddings": config["tie_word_embeddings"],
    }
    (folder / "params.json").write_text(json.dumps(params))
    tensors = {
        name: tensor.astype(DTYPES[dtype])
        for name, tensor in to_native(config, make_tensors(config)).items()
    }
    for i in range(shards):
        name = (
            f"consolidated-{i + 1:05d}-of-{shards:05d}"
            if shards > 1
            else ("consolidated")
        )
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / f"{name}.safetensors", {"format": "pt"})
    write_tekken(folder, config["vocab_size"])
    return folder


def write_tekken(folder: Path, vocab_size: int) -> None:
    """Writes a tekken.json of the 256 bytes behind special tokens."""
    vocab = [
        {
            "rank": i,
            "token_bytes": base64.b64encode(bytes([i])).decode(),
            "token_str": chr(i),
        }
        for i in range(256)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": 256,
        "default_vocab_size": vocab_size,
        "default_num_special_tokens": vocab_size - 256,
        "version": "v3",
    }
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes a byte-level tokenizer of ``vocab_size`` tokens with a chat template."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"<extra_{i}>" for i in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
            "[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}"
            "{{ eos_token }}{% endif %}{% endfor %}"
        ),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
