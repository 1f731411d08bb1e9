"""An adapter merged into a GGUF file, in the encodings that it has."""

import json
import re

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from safetensors.numpy import save_file
from transformers import AutoConfig

from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.weights.gguf_encode import dequantize_rows
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.heads import join_rotary
from tests.unit.test_gguf import add_four_tokens
from tests.unit.test_prepare import run_main

HIDDEN, HEADS, KV, DIM, RANK = 256, 4, 2, 16, 4
SHAPES = {
    "token_embd": (4, HIDDEN),
    "blk.0.attn_norm": (HIDDEN,),
    "blk.0.attn_q": (HEADS * DIM, HIDDEN),
    "blk.0.attn_k": (KV * DIM, HIDDEN),
    "blk.0.attn_v": (KV * DIM, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HEADS * DIM),
    "blk.0.ffn_norm": (HIDDEN,),
    "blk.0.ffn_gate": (96, HIDDEN),
    "blk.0.ffn_up": (96, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, 96),
    "output_norm": (HIDDEN,),
}
KINDS = {
    "token_embd": Kind.F16,
    "blk.0.attn_q": Kind.Q4_0,
    "blk.0.attn_k": Kind.Q8_0,
    "blk.0.attn_v": Kind.BF16,
    "blk.0.ffn_gate": Kind.Q4_K,
    "blk.0.ffn_up": Kind.Q6_K,
}
CHANGED = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}


def random_k_quant(rng, kind, shape):
    """Blocks whose float16 scales are 2**-8; there is no writer of K-quants."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    at = (0, 4) if kind == Kind.Q4_K else (208, 210)
    data[..., at[0] : at[1]] = np.tile(
        np.array([2.0**-8], np.float16).view(np.uint8), (at[1] - at[0]) // 2
    )
    return data.reshape(shape[0], -1)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "m.Q4_K.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(DIM)
    writer.add_value_length(DIM)
    writer.add_feed_forward_length(96)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_custom_alignment(4096)
    add_four_tokens(writer)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        kind = KINDS.get(name, Kind.F32)
        if kind in (Kind.Q4_K, Kind.Q6_K):
            data = random_k_quant(rng, kind, shape)
        else:
            data = quantize(rng.standard_normal(shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(folder, modules):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    tensors, deltas = {}, {}
    for module, (rows, columns) in modules.items():
        a = rng.standard_normal((RANK, columns)).astype(np.float32)
        b = rng.standard_normal((rows, RANK)).astype(np.float32)
        kind = "embedding_" if module == "embed_tokens" else ""
        end = "" if kind else ".weight"
        name = f"base_model.model.model.{module}.lora_{kind}"
        tensors |= {f"{name}A{end}": a, f"{name}B{end}": b}
        deltas[module] = 2 * (b @ a)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder, deltas


def values(tensor):
    return dequantize_rows(tensor.stored.read(), tensor.ggml_type, tensor.shape)


def test_what_is_for_images_is_left_out(tmp_path, base):
    modules = {"layers.0.self_attn.q_proj": SHAPES["blk.0.attn_q"]}
    image = {"vision_tower.transformer.layers.0.attention.q_proj": (24, 24)}
    both, _ = write_adapter(tmp_path / "both", modules | image)
    text, _ = write_adapter(tmp_path / "text", modules)
    *losses, note = prepare(base, tmp_path / "new", lora=both)
    assert "for images are left out (2)" in note
    assert losses == prepare(base, tmp_path / "alone", lora=text)
    new, alone = (tmp_path / folder / base.name for folder in ("new", "alone"))
    assert new.read_bytes() == alone.read_bytes()


def test_each_encoding(tmp_path, base):
    modules = {f"layers.0.{m}": SHAPES[f"blk.0.{t}"] for m, t in CHANGED.items()}
    adapter, deltas = write_adapter(tmp_path / "adapter", modules)
    notes = prepare(base, tmp_path / "new", lora=adapter)
    # llama.cpp's own reader agrees with what was written.
    assert len(gguf.GGUFReader(tmp_path / "new" / base.name).tensors) == len(SHAPES)
    old, new = GGUFCheckpoint(base), GGUFCheckpoint(tmp_path / "new" / base.name)
    assert new.header.metadata == old.header.metadata
    assert new.header.alignment == 4096
    assert list(new.tensors) == list(old.tensors)
    merged = {}
    for module, delta in deltas.items():
        name = f"blk.0.{CHANGED[module.removeprefix('layers.0.')]}.weight"
        heads = {"blk.0.attn_q.weight": HEADS, "blk.0.attn_k.weight": KV}.get(name)
        merged[name] = join_rotary(delta, heads) if heads else delta
    for name, tensor in old.tensors.items():
        found = new.tensors[name]
        if name not in merged:
            assert found.ggml_type == tensor.ggml_type
            assert np.array_equal(found.stored.read(), tensor.stored.read()), name
            continue
        assert found.ggml_type == (
            Kind.Q8_0 if tensor.ggml_type == Kind.Q4_K else tensor.ggml_type
        )
        exact = values(tensor) + merged[name]
        # Once more from the exact values gives nothing nearer.
        nearest = quantize(exact, found.ggml_type).view(np.uint8).reshape(-1)
        assert np.array_equal(found.stored.read(), nearest), name
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    weights = new.weights(AutoConfig.for_model(**config), packed=True)
    assert len(list(weights)) == len(SHAPES)
    assert "ffn_gate: 1 from Q4_K into Q8_0; the adapter" in "\n".join(notes)
    percent = {line.split(":")[0]: re.findall(r"([\d.]+)%", line) for line in notes}
    changed, rounded = (
        {name: float(pair[i]) for name, pair in percent.items()} for i in (0, 1)
    )
    # Changes of 2 * sqrt(4), in weights of 1.
    assert all(95 < changed[name] < 99 for name in ("attn_q", "attn_k", "ffn_down"))
    assert not any("lost" in line for line in notes)
    assert rounded["ffn_down"] == 0
    assert 4 < rounded["attn_q"] < 12
    assert 0 < rounded["attn_k"] < 1


def test_a_tied_head_gets_a_tensor_of_its_own(tmp_path, base):
    adapter, deltas = write_adapter(tmp_path / "adapter", {"embed_tokens": (HIDDEN, 4)})
    prepare(base, tmp_path / "new", lora=adapter)
    old, new = GGUFCheckpoint(base), GGUFCheckpoint(tmp_path / "new" / base.name)
    embedding = values(old.tensors["token_embd.weight"])
    assert np.array_equal(values(new.tensors["output.weight"]), embedding)
    expected = (embedding + deltas["embed_tokens"].T).astype(np.float16)
    assert np.array_equal(values(new.tensors["token_embd.weight"]), expected)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_the_command_line(tmp_path, base, monkeypatch, capsys):
    modules = {"layers.0.self_attn.q_proj": SHAPES["blk.0.attn_q"]}
    adapter, _ = write_adapter(tmp_path / "adapter", modules)
    new = tmp_path / "new"
    flags = "--lora", adapter, "--lora-scale", "0.5"
    status, out, _ = run_main(monkeypatch, capsys, base, new, *flags)
    assert status == 0
    assert "much of the change is lost" not in out
    assert "attn_q: 1 from Q4_0 into Q4_0; the adapter changes them by" in out
    assert f"--weight-path {(new / base.name).resolve()}" in out
    # Far below a step of Q4_0.
    flags = "--lora", adapter, "--lora-scale", "1e-4"
    _, out, _ = run_main(monkeypatch, capsys, base, tmp_path / "faint", *flags)
    assert "(RMS), in which much of the change is lost" in out
    # What is not said is 1.
    files = []
    for name, scale in (("trained", ()), ("one", ("--lora-scale", "1"))):
        flags = "--lora", adapter, *scale
        assert run_main(monkeypatch, capsys, base, tmp_path / name, *flags)[0] == 0
        files.append((tmp_path / name / base.name).read_bytes())
    assert files[0] == files[1] != (new / base.name).read_bytes()
    status, _, err = run_main(monkeypatch, capsys, base, new, "--lora-scale", "2")
    assert status == 2
    assert "--lora-scale is for --lora" in err


def test_an_adapter_of_another_model(tmp_path, base):
    modules = {"layers.1.self_attn.q_proj": SHAPES["blk.0.attn_q"]}
    adapter, _ = write_adapter(tmp_path / "adapter", modules)
    with pytest.raises(UserError, match=r"layers.1.self_attn.q_proj"):
        prepare(base, tmp_path / "new", lora=adapter)
    assert not (tmp_path / "new").exists()
