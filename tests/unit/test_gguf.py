"""Reading GGUF: the rotary order, the metadata, and files that are no good."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.weights.gguf import GGUFCheckpoint
from max_mistral.weights.rotary import split_rotary
from tests.checkpoints import interleave


def write_gguf(path: Path, *, architecture="llama", drop=(), scaling=None) -> Path:
    """Writes a one-layer GGUF of hidden size 8 with four tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(12)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (4, 8),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_gate.weight": (12, 8),
        "blk.0.ffn_up.weight": (12, 8),
        "blk.0.ffn_down.weight": (8, 12),
        "output_norm.weight": (8,),
    }
    for name, shape in shapes.items():
        if name not in drop:
            writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_split_rotary_undoes_llama_cpp():
    weight = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    assert np.array_equal(split_rotary(interleave(weight, 2), 2), weight)
    assert not np.array_equal(interleave(weight, 2), weight)


def test_config_from_metadata(tmp_path):
    config = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf")).config()
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["head_dim"] == 4
    assert config["num_key_value_heads"] == 1
    assert config["max_position_embeddings"] == 64
    assert config["rms_norm_eps"] == 1e-5
    assert config["sliding_window"] is None
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == 4


def test_tensors_come_in_hugging_face_names_and_order(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    tensors = dict(GGUFCheckpoint(path).tensors())
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    assert len(tensors) == len(stored)
    assert np.array_equal(
        tensors["model.layers.0.self_attn.q_proj.weight"],
        split_rotary(stored["blk.0.attn_q.weight"], 2),
    )
    assert np.array_equal(
        tensors["model.layers.0.self_attn.v_proj.weight"],
        stored["blk.0.attn_v.weight"],
    )


def test_prepare_writes_a_whole_folder_or_none(tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    prepare(source, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with pytest.raises(UserError, match="exists already"):
        prepare(source, tmp_path / "out")
    broken = write_gguf(tmp_path / "b.gguf", drop=["blk.0.attn_q.weight"])
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight is missing"):
        prepare(broken, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_prepare_shards_large_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("max_mistral.prepare._SHARD_BYTES", 200)
    source = write_gguf(tmp_path / "m.gguf")
    prepare(source, tmp_path / "out")
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepare(tmp_path / "none.gguf", tmp_path / "out")


@pytest.mark.parametrize("size", [0, 3, 100, 700])
def test_a_truncated_file(tmp_path, size):
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "t.gguf").write_bytes(whole[:size])
    with pytest.raises(UserError, match="not a complete GGUF file"):
        prepare(tmp_path / "t.gguf", tmp_path / "out")


def test_another_architecture(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", architecture="gemma")
    with pytest.raises(UserError, match="holds the architecture 'gemma'"):
        GGUFCheckpoint(path)


def test_rope_scaling_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(UserError, match="scales RoPE"):
        GGUFCheckpoint(path).config()
