"""Mistral's own format: what params.json says, and what prepare makes of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.prepare.native import read_config
from tests.harness import load_safetensors
from workbench.checkpoints import (
    BASE,
    DTYPES,
    make_tensors,
    to_native,
    write_checkpoint,
    write_native,
)
from workbench.quantized import STATIC
from workbench.runner import make_pipeline_config

PARAMS = {
    "dim": 96,
    "n_layers": 4,
    "head_dim": 32,
    "hidden_dim": 160,
    "n_heads": 4,
    "n_kv_heads": 1,
    "norm_eps": 1e-5,
    "vocab_size": 320,
}
YARN = {"factor": 16, "original_max_position_embeddings": 16, "beta": 8, "alpha": 2}


def read(tmp_path, **changes):
    path = tmp_path / "params.json"
    path.write_text(json.dumps(PARAMS | changes))
    return read_config(path)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [({}, 1e6), ({"sliding_window": 4096}, 1e4), ({"rope_theta": 5e5}, 5e5)],
)
def test_rope_theta(tmp_path, changes, theta):
    assert read(tmp_path, **changes)["rope_parameters"]["rope_theta"] == theta


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 32768),
        ({"max_seq_len": 512}, 512),
        ({"max_position_embeddings": 256, "max_seq_len": 512}, 256),
        ({"yarn": YARN}, 256),
    ],
)
def test_context(tmp_path, changes, context):
    assert read(tmp_path, **changes)["max_position_embeddings"] == context


def test_without_a_width_of_heads_they_share_the_hidden_size(tmp_path):
    assert read(tmp_path, head_dim=None)["head_dim"] == 96 // 4


def test_one_window_is_a_mistral(tmp_path):
    config = read(tmp_path, sliding_window=128)
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 128)


@pytest.mark.parametrize("wide", [None, 512])
@pytest.mark.parametrize("key", ["sliding_window", "_sliding_window"])
def test_a_pattern_of_windows_is_a_ministral(tmp_path, key, wide):
    config = read(tmp_path, max_seq_len=512, **{key: [wide, 128]})
    assert (config["model_type"], config["sliding_window"]) == ("ministral", 128)
    assert config["layer_types"] == ["full_attention", "sliding_attention"] * 2


@pytest.mark.parametrize(
    ("apply_scale", "attention_factor"), [(False, 1.0), (True, None), (None, None)]
)
def test_yarn(tmp_path, apply_scale, attention_factor):
    yarn = YARN if apply_scale is None else YARN | {"apply_scale": apply_scale}
    rope = read(tmp_path, yarn=yarn)["rope_parameters"]
    assert rope["rope_type"] == "yarn"
    assert rope["factor"] == 16
    assert (rope["beta_fast"], rope["beta_slow"]) == (8, 2)
    assert rope.get("attention_factor") == attention_factor


def test_scaled_queries_are_a_ministral3(tmp_path):
    scaling = {"original_max_position_embeddings": 16, "beta": 0.1}
    config = read(tmp_path, yarn=YARN, llama_4_scaling=scaling)
    assert config["model_type"] == "ministral3"
    assert config["rope_parameters"]["llama_4_scaling_beta"] == 0.1


def test_fp8_is_hugging_faces(tmp_path):
    fp8 = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    found = read(tmp_path, quantization=fp8)["quantization_config"]
    assert found == STATIC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": {"num_experts": 8}}, "moe = "),
        ({"quantization": {"qformat_weight": "fp4"}}, "quantization = "),
        ({"model_type": "mamba"}, "model_type = 'mamba'"),
        ({"activation": "gelu"}, "activation = 'gelu'; expected 'silu'"),
        ({"causal": False}, "causal = False; expected True"),
        ({"q_lora_rank": 1536}, "unknown key q_lora_rank = 1536"),
        ({"sliding_window": [128, 256]}, "one window size"),
        ({"sliding_window": [None, None, 128]}, "divides the layers"),
        ({"sliding_window": [None] * 5}, "a list of 1 to 4, one a layer"),
        ({"yarn": YARN | {"gamma": 1}}, r"yarn\.gamma, which is unknown; known"),
        (
            {
                "yarn": YARN,
                "llama_4_scaling": {
                    "original_max_position_embeddings": 32,
                    "beta": 0.1,
                },
            },
            "llama_4_scaling = ",
        ),
    ],
)
def test_what_the_graph_cannot_honour_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_unset_keys_of_other_models_are_fine(tmp_path):
    read(tmp_path, moe=None, q_lora_rank=None, model_type="transformer", causal=True)


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(UserError, match="lacks dim, n_layers"):
        read_config(tmp_path / "params.json")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_weights_come_back(tmp_path, monkeypatch, dtype, shards):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    source = write_native(tmp_path / "src", BASE, dtype=dtype, shards=shards)
    prepare(source, tmp_path / "dst")
    pipeline_config = make_pipeline_config(
        tmp_path / "dst", weight_path=sorted((tmp_path / "dst").glob("*.safetensors"))
    )
    paths = pipeline_config.model.resolved_weight_paths()
    assert len(paths) == shards
    assert all(path.is_symlink() for path in paths)  # no gigabytes copied
    weights = load_safetensors(pipeline_config)
    for name, tensor in make_tensors(BASE).items():
        want = tensor.astype(DTYPES[dtype]).astype(np.float32)
        found = weights[name.removeprefix("model.")]
        assert np.array_equal(np.from_dlpack(found.data), want), name


def test_shards_have_an_index(tmp_path):
    prepare(write_native(tmp_path / "src", BASE, shards=3), tmp_path / "dst")
    shards = sorted((tmp_path / "dst").glob("model-*-of-00003.safetensors"))
    held = {name: path.name for path in shards for name in load_file(path)}
    index = json.loads((tmp_path / "dst" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == held
    assert len(set(held.values())) == 3


def test_the_tokenizer_is_there(tmp_path):
    prepare(write_native(tmp_path / "src", BASE), tmp_path / "dst")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dst")
    assert len(tokenizer) == BASE["vocab_size"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=True, return_dict=False
    )
    assert tokenizer.convert_ids_to_tokens(ids) == (
        ["<s>", "[INST]", "h", "i", "[/INST]"]
    )


def test_mistrals_own_tokenizer_file_comes_along(tmp_path):
    """With it the server encodes chats as mistral-common does."""
    source = write_native(tmp_path / "src", BASE)
    prepare(source, tmp_path / "dst")
    found, want = ((tmp_path / d / "tekken.json").read_bytes() for d in ("dst", "src"))
    assert found == want


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    source = write_native(tmp_path / "src", BASE | {"vocab_size": 400})
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"vocab_size": 320}))
    with pytest.raises(UserError, match="has 400 tokens, but the model has 320"):
        prepare(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def write_consolidated(folder):
    """A repo whose config is Hugging Face's and whose shards are consolidated."""
    write_checkpoint(folder, BASE)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    return folder


def test_huggingface_files_are_taken_as_they_are(tmp_path):
    source = write_consolidated(tmp_path / "src")
    prepare(source, tmp_path / "dst")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        found, want = ((tmp_path / d / name).read_text() for d in ("dst", "src"))
        assert json.loads(found) == json.loads(want)
    assert make_pipeline_config(tmp_path / "dst").model.resolved_weight_paths()


def test_image_towers_are_dropped_by_name(tmp_path):
    image = np.ones((2, 2), dtype=np.float32)
    native = to_native(BASE, make_tensors(BASE)) | {
        "vision_encoder.patch_conv.weight": image,
        "vision_language_adapter.w_in.weight": image,
        "patch_merger.merging_layer.weight": image,
        "pre_mm_projector_norm.weight": image,
    }
    write_checkpoint(tmp_path, BASE, tensors=native)
    load(tmp_path)
    native["vision_model.weight"] = image
    write_checkpoint(tmp_path, BASE, tensors=native)
    with pytest.raises(UserError, match=r"vision_model\.weight is unknown"):
        load(tmp_path)


def load(folder):
    return load_safetensors(make_pipeline_config(folder))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("params.json", "neither params.json nor config.json"),
        ("tekken.json", "no tokenizer.json, tekken.json or tokenizer.model"),
        ("consolidated-00002-of-00003.safetensors", "lacks consolidated-00002-of"),
        ("consolidated-*", "has no consolidated"),
    ],
)
def test_what_is_missing_is_named(tmp_path, remove, message):
    source = write_native(tmp_path / "src", BASE, shards=3)
    for path in source.glob(remove):
        path.unlink()
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_a_truncated_shard_is_refused(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    path = source / "consolidated.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        prepare(source, tmp_path / "dst")


def test_it_never_overwrites(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    (tmp_path / "dst").mkdir()
    with pytest.raises(UserError, match="exists already"):
        prepare(source, tmp_path / "dst")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_layers", 2**31),
        ("n_layers", 0),
        ("n_layers", "4"),
        ("n_layers", True),
        ("dim", -96),
        ("n_heads", 0),
        ("n_heads", [4]),
        ("n_kv_heads", 8),
        ("head_dim", 2.5),
        ("hidden_dim", None),
        ("vocab_size", 10**30),
        ("norm_eps", float("nan")),
        ("norm_eps", 0),
        ("norm_eps", -1e-5),
        ("rope_theta", 0),
        ("rope_theta", float("inf")),
        ("rope_theta", "1e6"),
        ("max_seq_len", 10**30),
        ("max_seq_len", 0),
        ("sliding_window", 0),
        ("sliding_window", "128"),
        ("sliding_window", []),
        ("sliding_window", [None, "128"]),
        ("tied_embeddings", "no"),
        ("yarn", 7),
        ("yarn", {"factor": 16}),
        ("yarn", YARN | {"factor": float("nan")}),
        ("yarn", YARN | {"factor": 1e6, "original_max_position_embeddings": 2**20}),
        # A context of no token.
        ("yarn", YARN | {"factor": 0.01}),
        ("yarn", YARN | {"apply_scale": 1}),
        ("llama_4_scaling", [1]),
        ("llama_4_scaling", {"beta": 0.1}),
        ("quantization", "fp8"),
    ],
)
def test_a_value_of_another_kind_or_size_is_named(tmp_path, key, value):
    with pytest.raises(UserError, match=f"params.json.*{key}"):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{", '{"dim": 1, "dim": 2}', "[" * 10**5],
    ids=["empty", "list", "number", "open", "twice", "deep"],
)
def test_params_that_are_no_object(tmp_path, text):
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(UserError, match=r"params\.json"):
        read_config(tmp_path / "params.json")


def test_params_that_are_a_folder(tmp_path):
    (tmp_path / "params.json").mkdir()
    with pytest.raises(UserError, match=r"params\.json is a folder; expected a file"):
        read_config(tmp_path / "params.json")


def test_one_shard_of_very_many(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    shard = source / "consolidated.safetensors"
    shard.rename(source / "consolidated-1-of-99999999999.safetensors")
    with pytest.raises(UserError, match="one of 99999999999; expected at most"):
        prepare(source, tmp_path / "dst")


def test_of_many_missing_shards_some_are_named(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    shard = source / "consolidated.safetensors"
    shard.rename(source / "consolidated-00001-of-09999.safetensors")
    with pytest.raises(UserError, match="and 9988 more") as error:
        prepare(source, tmp_path / "dst")
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"text_config": 7}', b"\xff"],
    ids=["empty", "list", "7", "ff"],
)
def test_a_config_that_is_no_object(tmp_path, data):
    source = write_consolidated(tmp_path / "src")
    (source / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.json"):
        prepare(source, tmp_path / "dst", max_position_embeddings=64)
    assert not (tmp_path / "dst").exists()
