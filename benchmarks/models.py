"""Random models of real shapes, the same weights in every format."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import load_weights
from safetensors.numpy import save_file
from transformers import AutoConfig

from max_mistral.weights.heads import rotary_heads
from max_mistral.weights.names import expected_tensors
from workbench.checkpoints import BASE, interleave, write_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "300M": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    # TinyLlama
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    # Mistral
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
# What llama.cpp makes of random weights without knowing what matters in them.
ENCODINGS = ["bf16", "q8_0", "q6_k", "q5_0", "q5_1", "q5_k_s", "q5_k_m", "q4_0", "q4_1"]
ENCODINGS += ["q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs", "q3_k_s", "q3_k_m", "q3_k_l"]
ENCODINGS += ["q2_k", "tq2_0"]
VOCAB = 32000
CONTEXT = 8192


def config(shape: str) -> dict[str, Any]:
    """Returns the config.json of a shape."""
    return BASE | {
        "vocab_size": VOCAB,
        "head_dim": None,
        "max_position_embeddings": CONTEXT,
        "dtype": "bfloat16",
        **SHAPES[shape],
    }


def make(shape: str, folder: Path) -> Path:
    """Writes bfloat16 safetensors, a tokenizer and a BF16 GGUF; returns ``folder``.

    7B gets no safetensors, for it is measured at 4 bits only.
    """
    gguf_path = folder / "model-bf16.gguf"
    if gguf_path.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    values = config(shape)
    (folder / "config.json").write_text(json.dumps(values))
    write_tokenizer(folder, VOCAB)
    hf = AutoConfig.for_model(**values)
    tensors, writer = {}, _writer(folder / "partial.gguf", values)
    rng = np.random.default_rng(0)
    theirs = expected_tensors(hf, "gguf", tied=False)
    ours = expected_tensors(hf, "huggingface", tied=False)
    pairs = list(zip(ours.items(), theirs, strict=True))
    for (_, tensor), gguf_name in pairs:
        kind, size = ("F32", 4) if len(tensor.shape) == 1 else ("BF16", 2)
        writer.add_tensor_info(
            gguf_name,
            tensor.shape,
            np.dtype(np.float32),  # what counts is raw_dtype
            size * math.prod(tensor.shape),
            raw_dtype=gguf.GGMLQuantizationType[kind],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One at a time, for all of 7B's take 14 GB.
    for (name, tensor), _ in pairs:
        weight = random_weight(rng, tensor.shape)
        if shape != "7B":
            tensors[name] = weight
        if len(tensor.shape) == 1:
            writer.write_tensor_data(weight.astype(np.float32))
            continue
        heads = rotary_heads(tensor.graph, hf)
        stored = weight if heads is None else interleave(weight, heads)
        writer.write_tensor_data(np.ascontiguousarray(stored).view(np.uint8))
    writer.close()
    if shape != "7B":
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "partial.gguf").rename(gguf_path)
    return folder


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Returns bfloat16 values: those of a norm near 1, of a matrix near 0."""
    weight = rng.standard_normal(shape, dtype=np.float32) * 0.02
    return (weight + 1 if len(shape) == 1 else weight).astype(ml_dtypes.bfloat16)


def make_safetensors(values: dict[str, Any], folder: Path) -> Path:
    """Writes a config with random bfloat16 weights; returns ``folder``.

    A file for each layer: all together would need twice the model's memory.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    write_tokenizer(folder, values["vocab_size"])
    expected = expected_tensors(
        AutoConfig.for_model(**values), "huggingface", tied=False
    )
    layers: dict[str, list[str]] = defaultdict(list)
    for name in expected:
        layers["".join(filter(str.isdigit, name))].append(name)
    weight_map: dict[str, str] = {}
    # A layer of a 7B model takes seconds and 2 GB, so not all of them at a time.
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        written = []
        for i, names in enumerate(layers.values(), start=1):
            file = f"model-{i:05d}-of-{len(layers):05d}.safetensors"
            shapes = {name: expected[name].shape for name in names}
            written.append(pool.submit(write_part, shapes, folder / file, i))
            weight_map |= dict.fromkeys(names, file)
        for part in written:
            part.result()
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_part(shapes: dict[str, tuple[int, ...]], path: Path, seed: int) -> None:
    """Writes random bfloat16 weights of these shapes as safetensors."""
    rng = np.random.default_rng(seed)
    part = {name: random_weight(rng, shape) for name, shape in shapes.items()}
    save_file(part, path, {"format": "pt"})


def stock(folder: Path) -> Path:
    """Writes the same weights as a float32 Llama, for MAX's own; returns its folder."""
    target = folder.with_name(folder.name + "-float32")
    if (target / "model.safetensors").exists():
        return target
    target.mkdir(exist_ok=True)
    values = json.loads((folder / "config.json").read_text())
    values |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    values |= {"dtype": "float32", "rope_scaling": None}
    values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    values.pop("sliding_window", None)
    (target / "config.json").write_text(json.dumps(values))
    write_tokenizer(target, values["vocab_size"])
    files = sorted(folder.glob("model*.safetensors"))
    tensors = {
        name: np.from_dlpack(weight.data().astype(DType.float32).data)
        for name, weight in load_weights(files).items()
    }
    partial = target / "partial.tensors"
    save_file(tensors, partial, {"format": "pt"})
    partial.replace(target / "model.safetensors")
    return target


def weights(folder: Path, encoding: str) -> Path:
    """Returns the GGUF of an encoding, ``bf16`` or what :func:`quantize` makes."""
    if encoding == "bf16":
        return folder / "model-bf16.gguf"
    return quantize(folder, encoding)


def quantize(folder: Path, encoding: str) -> Path:
    """Returns the GGUF of an encoding (``q4_k_m``, ...), made by llama.cpp."""
    path = folder / f"model-{encoding}.gguf"
    if not path.exists():
        import llama_cpp

        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{encoding.upper()}")
        partial = folder / "partial.gguf"
        status = llama_cpp.llama_model_quantize(
            str(folder / "model-bf16.gguf").encode(), str(partial).encode(), parameters
        )
        assert status == 0, status
        partial.rename(path)
    return path


def _writer(path: Path, values: dict[str, Any]) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_rope_freq_base(values["rope_theta"])
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"▁{i}" for i in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(VOCAB)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return writer
