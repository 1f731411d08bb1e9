"""Reading GGUF: the rotary order, the metadata, and files that are no good."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import MistralConfig

from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.prepare import prepare
from max_mistral.weights.gguf import GGUFCheckpoint, dequantize_rows, encode
from max_mistral.weights.packed import PackedWeight
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


def load(path, **kwargs):
    checkpoint = GGUFCheckpoint(path)
    config = MistralConfig(**checkpoint.config())
    return dict(checkpoint.weights(config, **kwargs))


def test_tensors_come_in_the_graphs_names_and_order(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    weights = load(path, packs=False)
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    assert len(weights) == len(stored)
    assert np.array_equal(
        np.from_dlpack(weights["layers.0.self_attn.q_proj.weight"].data),
        split_rotary(stored["blk.0.attn_q.weight"], 2),
    )
    assert np.array_equal(
        np.from_dlpack(weights["layers.0.self_attn.v_proj.weight"].data),
        stored["blk.0.attn_v.weight"],
    )


def test_matrices_are_packed_and_vectors_are_not(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    weights = load(path, packs=True)
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    query = split_rotary(stored["blk.0.attn_q.weight"], 2)
    found = weights["layers.0.self_attn.q_proj.weight"]
    assert found.encoding == Encoding.F32
    assert np.array_equal(found.data, pack(query.view(np.uint8), Encoding.F32, 8))
    assert not isinstance(weights["norm.weight"], PackedWeight)


@pytest.mark.parametrize("kind", [k.name for k in Encoding if k != Encoding.F32])
def test_what_has_a_kernel_keeps_its_bytes(kind):
    data = np.arange(12, dtype=np.uint8)
    kept, encoding = encode(data, gguf.GGMLQuantizationType[kind], (1, 1))
    assert kept is data
    assert encoding.name == kind


def random_blocks(kind, rows, columns):
    """Random bytes, with float16 scales that are numbers."""
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (rows * columns // size, bytes_), dtype=np.uint8)
    scales = {"Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108]}
    for at in scales.get(kind.name, [0]):
        values = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = values.view(np.uint8)
    return blocks.reshape(-1)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"])
def test_what_has_none_loses_nothing(kind):
    kind = gguf.GGMLQuantizationType[kind]
    shape = (3, 512)
    data = random_blocks(kind, *shape)
    want = dequantize_rows(data, kind, shape)
    repacked, encoding = encode(data, kind, shape)
    found = dequantize_rows(repacked, gguf.GGMLQuantizationType[encoding.name], shape)
    if kind.name == "Q5_0":
        assert encoding == Encoding.Q8_0
        assert np.array_equal(found, want)
    else:
        assert encoding == Encoding.F16
        np.testing.assert_allclose(found, want, rtol=2**-11, atol=2**-24)


def test_a_config_of_another_model_is_refused(tmp_path):
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf"))
    config = MistralConfig(**checkpoint.config() | {"intermediate_size": 16})
    with pytest.raises(UserError, match=r"ffn_gate\.weight has shape \[12, 8\]"):
        dict(checkpoint.weights(config, packs=True))
    missing = write_gguf(tmp_path / "b.gguf", drop=["blk.0.attn_q.weight"])
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight is missing"):
        load(missing, packs=True)


def test_prepare_writes_a_whole_folder_or_none(tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    prepare(source, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with pytest.raises(UserError, match="exists already"):
        prepare(source, tmp_path / "out")
    other = write_gguf(tmp_path / "b.gguf", architecture="gemma")
    with pytest.raises(UserError, match="'gemma'"):
        prepare(other, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


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
