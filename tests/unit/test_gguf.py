"""Reading GGUF: the rotary order, the metadata, and files that are no good."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, MistralConfig

import max_mistral
from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.prepare import prepare
from max_mistral.prepare.gguf_config import read_config
from max_mistral.prepare.gguf_tokenizer import write_tokenizer
from max_mistral.weights.gguf_agrees import check_config
from max_mistral.weights.gguf_encode import dequantize_rows, encode, encoding_of
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.heads import split_rotary
from max_mistral.weights.packed import PackedWeight
from tests.harness import store
from workbench.checkpoints import interleave
from workbench.runner import make_pipeline_config


def write_gguf(
    path: Path,
    *,
    architecture="llama",
    drop=(),
    scaling=None,
    factor=16.0,
    scales_queries=True,
    eos=2,
    add_eos=None,
    fillers=0,
) -> Path:
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
        writer.add_rope_freq_base(1e6)
        writer.add_rope_scaling_type(scaling)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(4)
        writer.add_rope_scaling_yarn_log_mul(1.0)
        if scales_queries:
            writer.add_attn_temperature_scale(0.1)
    add_four_tokens(writer, eos, fillers)
    if add_eos is not None:
        writer.add_add_eos_token(add_eos)
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


def add_four_tokens(
    writer: gguf.GGUFWriter, eos: int | None = 2, fillers: int = 0
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "a", "b", "ab", *map(str, range(fillers))])
    writer.add_token_types([3, 1, 1, 1] + [1] * fillers)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    if eos is not None:
        writer.add_eos_token_id(eos)


def test_split_rotary_undoes_llama_cpp():
    weight = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    assert np.array_equal(split_rotary(interleave(weight, 2), 2), weight)
    assert not np.array_equal(interleave(weight, 2), weight)


def test_config_from_metadata(tmp_path):
    config = read_config(GGUFCheckpoint(write_gguf(tmp_path / "m.gguf")))
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["head_dim"] == 4
    assert config["num_key_value_heads"] == 1
    assert config["max_position_embeddings"] == 64
    assert config["rms_norm_eps"] == 1e-5
    assert config["sliding_window"] is None
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == 4


def test_a_large_vocabulary_loads_without_a_warning(tmp_path, caplog):
    """transformers takes it for one with a wrong pattern if no version is there."""
    path = write_gguf(tmp_path / "m.gguf", fillers=100_000)
    prepare(path, tmp_path / "model")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) > 100_000
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def load(path, **kwargs):
    checkpoint = GGUFCheckpoint(path)
    config = MistralConfig(**read_config(checkpoint))
    return dict(checkpoint.weights(config, **kwargs))


def test_tensors_come_in_the_graphs_names_and_order(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    weights = load(path, packed=False)
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
    weights = load(path, packed=True)
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    query = split_rotary(stored["blk.0.attn_q.weight"], 2)
    found = weights["layers.0.self_attn.q_proj.weight"]
    assert found.encoding == Encoding.F32
    assert np.array_equal(found.data, pack(query.view(np.uint8), Encoding.F32, 8))
    assert not isinstance(weights["norm.weight"], PackedWeight)


@pytest.mark.parametrize("kind", [k for k in Encoding if "_IN_" not in k.name])
def test_what_has_a_kernel_stays_what_it_is(kind):
    assert encoding_of(gguf.GGMLQuantizationType[kind.name]) == kind


@pytest.mark.parametrize("kind", ["IQ1_S", "MXFP4"])
def test_what_has_none_loses_nothing(tmp_path, kind):
    """Those that become other codes: ``test_kernels.py``."""
    kind = gguf.GGMLQuantizationType[kind]
    shape = (3, 512)
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    # A byte from 0x20 to 0x2f is the upper half of a float16 scale, from 0.008 to
    # 0.13; of MXFP4's, which are powers of two, only 0x77 to 0x7b are that size.
    blocks = rng.integers(0x20, 0x30, (3 * 512 // size, bytes_), dtype=np.uint8)
    if kind.name == "MXFP4":
        blocks[:, 0] = rng.integers(0x77, 0x7C, len(blocks))
    data = blocks.reshape(-1)
    want = dequantize_rows(data, kind, shape)
    repacked, encoding = encode(store(data, tmp_path), kind, shape), encoding_of(kind)
    found = dequantize_rows(repacked, gguf.GGMLQuantizationType[encoding.name], shape)
    assert encoding == Encoding.F16
    np.testing.assert_allclose(found, want, rtol=2**-11, atol=2**-24)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "output_norm.weight"])
def test_a_type_that_the_gguf_package_cannot_decode(tmp_path, name, packed):
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf"))
    tensor = checkpoint.tensors[name]
    checkpoint.tensors[name] = replace(tensor, ggml_type=gguf.GGMLQuantizationType.Q8_K)
    config = MistralConfig(**read_config(checkpoint))
    with pytest.raises(UserError, match=f"m.gguf: {name} is of type Q8_K, .* Q4_K_M"):
        dict(checkpoint.weights(config, packed=packed))


def test_a_config_of_another_model_is_refused(tmp_path):
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf"))
    config = MistralConfig(**read_config(checkpoint) | {"intermediate_size": 16})
    with pytest.raises(UserError, match=r"ffn_gate\.weight has shape \[12, 8\]"):
        dict(checkpoint.weights(config, packed=True))
    missing = write_gguf(tmp_path / "b.gguf", drop=["blk.0.attn_q.weight"])
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight is missing"):
        load(missing, packed=True)


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
    with pytest.raises(UserError, match="not a complete GGUF file"):
        GGUFCheckpoint(tmp_path / "t.gguf", vocabulary=False)


def test_an_unknown_type(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    # A tensor's entry: its name, uint32 of dimensions, that many uint64, its type.
    at = data.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    data[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'output_norm\.weight' of the type 99"):
        GGUFCheckpoint(path)
    with pytest.raises(UserError, match=r"'output_norm\.weight' of the type 99"):
        GGUFCheckpoint(path, vocabulary=False)


def test_another_architecture(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", architecture="gemma")
    with pytest.raises(UserError, match="holds the architecture 'gemma'"):
        GGUFCheckpoint(path)


def test_without_an_end_token_no_answer_would_end(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", eos=None)
    with pytest.raises(UserError, match=r"lacks tokenizer\.ggml\.eos_token_id"):
        prepare(path, tmp_path / "dst")


def test_an_unknown_rope_scaling_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", scaling=gguf.RopeScalingType.LONGROPE)
    with pytest.raises(UserError, match=r"rope\.scaling\.type = 'longrope'"):
        read_config(GGUFCheckpoint(path))


def test_ministral_3(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf",
        architecture="mistral3",
        scaling=gguf.RopeScalingType.YARN,
    )
    config = read_config(GGUFCheckpoint(path))
    assert config["model_type"] == "ministral3"
    assert config["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 4,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }


# What it changes of the config that belongs to the file, and what is said then.
OTHERS = {
    "heads": ({"num_attention_heads": 4}, "attention.head_count = 2; expected 4"),
    "groups": ({"num_key_value_heads": 2}, "attention.head_count_kv = 1"),
    "layers": ({"num_hidden_layers": 2}, "block_count = 1; expected 2"),
    "epsilon": ({"rms_norm_eps": 1e-6}, "layer_norm_rms_epsilon"),
    "base": ({"rope_theta": 1e4}, "rope.freq_base = 1000000.0; expected 10000.0"),
    "factor": ({"factor": 8.0}, "rope.scaling.factor = 16.0; expected 8"),
    "context": ({"original_max_position_embeddings": 8}, "original_context_length"),
    "queries": ({"llama_4_scaling_beta": 0.2}, "attention.temperature_scale"),
    "mscale": ({"mscale": 0.0}, "yarn_log_multiplier = 1.0; expected 0"),
    "all_dim": ({"mscale_all_dim": 0.5}, "yarn_log_multiplier = 1.0; expected 0.5"),
    "type": ({"rope_type": "linear"}, "rope.scaling.type = 'yarn'; expected linear"),
    "none": ({"rope_type": "default"}, "rope.scaling.type = 'yarn'; expected none"),
    "model": ({"model_type": "mistral"}, "attention.temperature_scale"),
}


def config_of(path, **changes):
    """The config that prepare makes of a file, but for some values."""
    values = read_config(GGUFCheckpoint(path))
    rope = values["rope_parameters"]
    for key, value in changes.items():
        (rope if key in rope else values)[key] = value
    if rope["rope_type"] != "yarn":
        for key in list(rope):
            if key not in ("rope_type", "rope_theta", "factor"):
                del rope[key]
    if values["model_type"] == "mistral":
        rope.pop("llama_4_scaling_beta", None)
    return AutoConfig.for_model(**values)


LINEAR = {"scaling": gguf.RopeScalingType.LINEAR, "scales_queries": False}


@pytest.mark.parametrize(
    "options",
    [{}, {"scaling": gguf.RopeScalingType.YARN}, LINEAR, LINEAR | {"factor": 1.0}],
)
def test_a_config_that_says_the_same(tmp_path, options):
    path = write_gguf(tmp_path / "m.gguf", **options)
    check_config(GGUFCheckpoint(path), config_of(path))


def test_what_a_file_does_not_say_is_the_configs_to_say(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    check_config(GGUFCheckpoint(path), config_of(path, rope_theta=123.0, head_dim=8))


def test_a_linear_factor_of_one_is_none(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", **LINEAR, factor=1.0)
    check_config(GGUFCheckpoint(path), config_of(path, rope_type="default"))


@pytest.mark.parametrize("other", OTHERS)
def test_a_config_of_another_model(tmp_path, other):
    changes, says = OTHERS[other]
    path = write_gguf(tmp_path / "m.gguf", scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(UserError, match=r"as config\.json has it") as error:
        check_config(GGUFCheckpoint(path), config_of(path, **changes))
    assert says in str(error.value)
    assert str(error.value).endswith("make it with python -m max_mistral.prepare.")


def test_a_start_with_a_config_of_another_model(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    prepare(path, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    values = json.loads(config.read_text()) | {"rms_norm_eps": 3e-5}
    config.write_text(json.dumps(values))
    flags = {"weight_path": [path], "max_length": 64}
    pipeline_config = make_pipeline_config(tmp_path / "model", **flags)
    with pytest.raises(UserError, match=r"rms_epsilon = .*; expected 3e-05"):
        max_mistral.MistralConfig.initialize(pipeline_config)


def write_vocabulary(path, kind, pre, tokens, types, scores=None, merges=None, **more):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model(kind)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores:
        writer.add_token_scores(scores)
    if merges:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in more.items():
        kind = gguf.GGUFValueType.get_type(value)
        key = name if "." in name else f"tokenizer.ggml.{name}"
        writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUFCheckpoint(path)


def test_a_sentencepiece_vocabulary(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    types = [2, 3, 3, 3, 3] + [6] * 256 + [1] * 6
    tokens = pieces + [f"<0x{i:02X}>" for i in range(256)]
    tokens += ["▁a", "ab", "▁ab", "▁", "a", "b"]
    scores = [0.0] * 261 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    checkpoint = write_vocabulary(
        tmp_path / "m.gguf", "llama", None, tokens, types, scores
    )
    write_tokenizer(checkpoint, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("[INST] ab[/INST]")
    assert tokenizer.convert_ids_to_tokens(ids) == (["<s>", "[INST]", "▁ab", "[/INST]"])
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab\n")) == (
        ["<s>", "▁ab", "<0x0A>"]
    )


def test_scores_of_another_vocabulary_are_refused(tmp_path):
    tokens, scores = ["<unk>", "<s>", "</s>"], [0.0] * 4
    checkpoint = write_vocabulary(
        tmp_path / "m.gguf", "llama", None, tokens, [2, 3, 3], scores
    )
    with pytest.raises(UserError, match=r"ggml\.scores of length = 4; expected 3"):
        write_tokenizer(checkpoint, tmp_path)


def test_a_tekken_vocabulary(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "[INST]"]
    tokens += sorted(pre_tokenizers.ByteLevel.alphabet()) + ["Ġa", "12"]
    types = [3] * 4 + [1] * 258
    checkpoint = write_vocabulary(
        tmp_path / "m.gguf", "gpt2", "tekken", tokens, types, merges=["Ġ a", "1 2"]
    )
    write_tokenizer(checkpoint, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    # Tekken has every digit by itself.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("[INST]b a12")) == (
        ["<s>", "[INST]", "b", "Ġa", "1", "2"]
    )


def test_a_disk_that_is_full_is_said_as_such(tmp_path):
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "12",
    ]
    types = [3] * 3 + [1] * 257
    checkpoint = write_vocabulary(
        tmp_path / "m.gguf", "gpt2", "tekken", tokens, types, merges=["1 2"]
    )
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_tokenizer(checkpoint, tmp_path)


def test_an_unknown_vocabulary_is_refused(tmp_path):
    checkpoint = write_vocabulary(
        tmp_path / "m.gguf", "gpt2", "qwen2", ["a", "b", "c"], [1, 1, 1]
    )
    with pytest.raises(UserError, match="kind 'gpt2'/'qwen2'"):
        write_tokenizer(checkpoint, tmp_path)
