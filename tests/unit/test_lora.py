"""Adapters: PEFT's own merges, each kind of base, and what is refused."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding, pack
from max_mistral.prepare import prepare
from max_mistral.prepare.lora import safetensors as shards
from max_mistral.prepare.lora.adapter import read_adapter
from max_mistral.prepare.lora.maths import merge
from max_mistral.prepare.shards import find_shards
from max_mistral.weights.heads import join_rotary, split_rotary
from max_mistral.weights.names import in_text_tower
from tests.harness import load_safetensors
from tests.lora_reference import CASES, GOLDENS, SCALED, TINY
from workbench.checkpoints import make_tensors, write_checkpoint, write_native
from workbench.runner import make_pipeline_config

# One rounding to the dtype; of float32, the order of a sum of 4 and then a norm.
ROUNDING = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}


def load(folder):
    tensors = {}
    for path in find_shards(folder, "model"):
        tensors |= load_file(path)
    return tensors


def close(found, expected, dtype):
    found, expected = found.astype(np.float32), expected.astype(np.float32)
    return np.allclose(found, expected, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "golden", "scale"),
    [*((name, "merged", 1.0) for name in CASES), (SCALED[0], "scaled", SCALED[1])],
)
def test_it_is_what_peft_merges(tmp_path, name, golden, scale):
    dtype = CASES[name][1]
    base = write_checkpoint(tmp_path / "base", TINY, dtype=dtype)
    prepare(base, tmp_path / "new", lora=GOLDENS / name, lora_scale=scale)
    before, after = load(base), load(tmp_path / "new")
    expected = load_file(GOLDENS / name / f"{golden}.safetensors")
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        if key in expected:
            assert close(after[key], expected[key], dtype), key
            # The golden is not so near to the base that anything would do.
            assert not close(tensor, expected[key], dtype), key
        else:
            assert after[key].tobytes() == tensor.tobytes(), key


def test_a_bfloat16_merge_is_the_float32_one_rounded_once(tmp_path):
    base = write_checkpoint(tmp_path / "base", TINY, dtype="bfloat16")
    wide = {key: t.astype(np.float32) for key, t in load(base).items()}
    write_checkpoint(tmp_path / "wide", TINY, tensors=wide)
    for source in ("base", "wide"):
        out = tmp_path / f"new_{source}"
        prepare(tmp_path / source, out, lora=GOLDENS / "dora_bfloat16")
    narrow, wide = load(tmp_path / "new_base"), load(tmp_path / "new_wide")
    for key, tensor in narrow.items():
        rounded = wide[key].astype(ml_dtypes.bfloat16)
        assert tensor.tobytes() == rounded.tobytes(), key


def test_the_maths_by_hand():
    weight = np.array([[3, 0], [0, 4]], np.float32)
    a, b = np.array([[1, 2]], np.float32), np.array([[1], [0]], np.float32)
    assert merge(weight, a, b, 2.0).tolist() == [[5, 4], [0, 4]]
    # Rows of length 5 and 4 before; 1 and 2 after.
    magnitude = np.array([1, 2], np.float32)
    merged = merge(weight, a, b, 0.0, magnitude)
    assert merged.tolist() == [[1, 0], [0, 2]]
    # An embedding's pair is transposed, and its magnitudes are of columns.
    assert merge(weight, a, b, 2.0, embedding=True).tolist() == [[5, 0], [4, 4]]


def test_the_folder_is_complete(tmp_path):
    base = write_checkpoint(tmp_path / "base", TINY, shards=2)
    prepare(base, tmp_path / "new", lora=GOLDENS / "plain")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    old = json.loads((base / "config.json").read_text())
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == old


@pytest.mark.parametrize("write", [write_checkpoint, write_native])
def test_max_loads_what_was_written(tmp_path, write):
    config = TINY | {"vocab_size": 320}
    base = write(tmp_path / "base", config)
    prepare(base, tmp_path / "new", lora=GOLDENS / "dora")
    loaded = load_safetensors(make_pipeline_config(tmp_path / "new"))
    changes = read_adapter(GOLDENS / "dora", AutoConfig.for_model(**config))
    name = "layers.1.self_attn.k_proj.weight"
    merged = changes[name].apply(make_tensors(config)[f"model.{name}"])
    packed = pack(merged.view(np.uint8), Encoding.F32, merged.shape[1])
    assert np.array_equal(loaded[name].data, packed)


def test_shards_have_an_index(tmp_path, monkeypatch):
    base = write_checkpoint(tmp_path / "base", TINY)
    prepare(base, tmp_path / "one", lora=GOLDENS / "plain")
    monkeypatch.setattr(shards, "MOST_SHARD", 4000)
    prepare(base, tmp_path / "many", lora=GOLDENS / "plain")
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    for path in files:
        tensors = load_file(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 4000 or len(tensors) == 1
        assert all(index["weight_map"][name] == path.name for name in tensors)
    one, many = load(tmp_path / "one"), load(tmp_path / "many")
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_mistrals_own_format(tmp_path):
    """Q and K are in another rotary order there, and so is what is added."""
    base = write_native(tmp_path / "base", TINY | {"vocab_size": 320})
    write_checkpoint(tmp_path / "hf", TINY | {"vocab_size": 320})
    for source in ("base", "hf"):
        prepare(tmp_path / source, tmp_path / f"new_{source}", lora=GOLDENS / "dora")
    native, hf = load(tmp_path / "new_base"), load(tmp_path / "new_hf")
    name = "layers.1.attention.wk.weight"
    key = split_rotary(native[name], TINY["num_key_value_heads"])
    assert np.array_equal(key, hf["model.layers.1.self_attn.k_proj.weight"])
    assert native.keys() == load_file(base / "consolidated.safetensors").keys()
    assert np.array_equal(
        native["layers.0.feed_forward.w2.weight"],
        hf["model.layers.0.mlp.down_proj.weight"],
    )


def test_join_rotary_undoes_split_rotary():
    weight = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    assert np.array_equal(join_rotary(split_rotary(weight, 2), 2), weight)
    assert not np.array_equal(join_rotary(weight, 2), weight)


TOWER = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": TINY,
    "vision_config": {"model_type": "pixtral"},
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("inside", ["", "model.language_model.", "language_model."])
def test_a_text_tower(tmp_path, inside):
    """The adapter may spell the tower as the base does, or in another way."""
    base = write_checkpoint(tmp_path / "base", TINY)
    tensors = {f"language_model.{k}": t for k, t in load(base).items()}
    image = np.arange(6, dtype=np.float16)
    tensors["vision_tower.patch_conv.weight"] = image
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(TOWER))
    adapter = shutil.copytree(GOLDENS / "plain", tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file(
        {
            key.replace(
                "base_model.model.model.",
                f"base_model.model.{inside}"
                + ("model." if inside in ("", "language_model.") else ""),
            ): tensor
            for key, tensor in load_file(path).items()
        },
        path,
    )
    prepare(base, tmp_path / "new", lora=adapter)
    after = load(tmp_path / "new")
    expected = load_file(GOLDENS / "plain" / "merged.safetensors")
    for key, tensor in expected.items():
        assert close(after[f"language_model.{key}"], tensor, "float32"), key
    assert np.array_equal(after["vision_tower.patch_conv.weight"], image)


# As PEFT names them where target_modules is of names such as q_proj.
VISION = "base_model.model.model.vision_tower.transformer.layers.0.attention.q_proj."
PROJECTOR = "base_model.model.model.multi_modal_projector.linear_1."


def for_images():
    return {
        VISION + "lora_A.weight": ones(4, 24),
        VISION + "lora_B.weight": ones(24, 4),
        PROJECTOR + "weight": ones(16, 24),
    }


@pytest.mark.parametrize("old", [False, True])
def test_what_an_adapter_changes_of_images_is_left_out(tmp_path, old):
    base = write_checkpoint(tmp_path / "base", TINY)
    images = {VISION.removeprefix("base_model.model.") + "weight": ones(24, 24)}
    text = {
        in_text_tower(key, "model.language_model."): tensor
        for key, tensor in load(base).items()
    }
    save_file(text | images, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(TOWER))
    # transformers 4 had the towers outside of the model.
    more = {
        key.replace("model.model.", "model.") if old else key: tensor
        for key, tensor in for_images().items()
    }
    saved = {"modules_to_save": ["multi_modal_projector"]}
    folder = edited(tmp_path, config=saved, tensors=more)
    alone = prepare(base, tmp_path / "text", lora=GOLDENS / "float16")
    notes = prepare(base, tmp_path / "new", lora=folder)
    assert alone == []
    assert [note[:52] for note in notes] == [
        "The adapter's tensors for images are left out (3): m"
    ]
    both, after = load(tmp_path / "text"), load(tmp_path / "new")
    assert both.keys() == after.keys()
    assert all(np.array_equal(both[key], after[key]) for key in both)


def test_an_adapter_for_images_alone(tmp_path):
    folder = edited(tmp_path)
    save_file(for_images(), folder / "adapter_model.safetensors")
    assert "for images alone (3), and max_mistral reads texts" in refused(folder)


def test_a_saved_module_that_only_sounds_like_one_of_images(tmp_path):
    saved = {"modules_to_save": ["projector"]}
    message = refused(edited(tmp_path, config=saved, tensors=for_images()))
    assert "has projector in modules_to_save, which the base has not" in message


def test_a_tied_head_stays_as_it_was(tmp_path):
    """As when the adapter was trained: it had no part in the head."""
    tied = TINY | {"tie_word_embeddings": True}
    base = write_checkpoint(tmp_path / "base", tied)
    assert "lm_head.weight" not in load(base)
    prepare(base, tmp_path / "new", lora=GOLDENS / "embedding_dora")
    after = load(tmp_path / "new")
    embedding = make_tensors(tied)["model.embed_tokens.weight"]
    assert np.array_equal(after["lm_head.weight"], embedding)
    assert not np.array_equal(after["model.embed_tokens.weight"], embedding)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


# What is refused.

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj."
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def edited(tmp_path, *, config=None, tensors=None, drop=()):
    """The adapter "float16" with changes."""
    folder = shutil.copytree(GOLDENS / "float16", tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    path = folder / "adapter_model.safetensors"
    found = load_file(path) | (tensors or {})
    save_file({k: t for k, t in found.items() if k not in drop}, path)
    return folder


def refused(folder, **changes):
    config = AutoConfig.for_model(**TINY | changes)
    with pytest.raises(UserError) as error:
        read_adapter(folder, config)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'; expected 'LORA'"),
        ({"peft_type": "VERA"}, "peft_type = 'VERA'"),
        ({"peft_type": None}, "lacks peft_type"),
        ({"bias": "lora_only"}, "bias = 'lora_only'; expected 'none'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_new_one": {"on": True}}, "a_new_one = {'on': True}"),
        ({"r": 0}, "r = 0"),
        ({"r": "4"}, "r = '4'"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj = 0"),
        ({"rank_pattern": {"q_proj": 1.5}}, "q_proj = 1.5"),
        ({"alpha_pattern": {"(a+)+b": 1}}, r"alpha_pattern = '(a+)+b'"),
        ({"alpha_pattern": {".*.*.*b": 1}}, "two repetitions"),
        ({"alpha_pattern": {".?" * 40 + "!": 1}}, "8 choices"),
        ({"alpha_pattern": {"(.|.)" * 40 + "!": 1}}, "8 choices"),
        ({"alpha_pattern": {"(": 1}}, "regular expressions"),
        ({"rank_pattern": {"a{" + "9" * 20 + "}": 4}}, "regular expressions"),
        ({"rank_pattern": {"(" * 3000 + ")" * 3000: 4}}, "regular expressions"),
        ({"r": 8}, "[4, 16], where r and the base make it [8, 16]"),
        ({"target_modules": ["v_proj"]}, "has no model.layers.0.self_attn.q_proj"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lists v_proj, but the adapter"),
        ({"layers_to_transform": 1}, "lists the layers 1 in layers_to_transform"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform"),
        ({"use_dora": True}, "are a, b, not a, b, magnitude"),
        ({"modules_to_save": ["lm_head"]}, "lists lm_head, but the adapter"),
        ({"modules_to_save": ["score"]}, "has score in modules_to_save"),
    ],
)
def test_a_config_that_is_refused(tmp_path, config, message):
    assert message in refused(edited(tmp_path, config=config))


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.lora_A.weight": ones(4, 16)}, "'q.lora_A.weight', which"),
        ({"base_model.model.score.weight": ones(4)}, "score.weight"),
        ({PREFIX + "lora_B.bias": ones(4)}, "lora_B.bias"),
        ({PREFIX + "vera_lambda_b": ones(4)}, "vera_lambda_b"),
        ({PREFIX + "hada_w1_a": ones(4)}, "hada_w1_a"),
        ({PREFIX + "weight": ones(32, 16)}, "in modules_to_save, but its weight"),
        ({PREFIX + "lora_A.weight": ones(4, 17)}, "[4, 17], where"),
        ({PREFIX + "lora_A.weight": ones(4, 16, dtype=np.int8)}, "in I8"),
        ({PREFIX + "lora_A.weight": ones(4, 16) * np.nan}, "not finite"),
        ({PREFIX + "lora_embedding_A": ones(4, 16)}, "are a, b, embedding a, not"),
        (
            {PREFIX.replace("model.model", "model") + "lora_A.weight": ones(4, 16)},
            "in two spellings",
        ),
        (
            {PREFIX.replace("0", "2") + "lora_A.weight": ones(4, 16)},
            "layers.2.self_attn",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path, tensors, message):
    assert message in refused(edited(tmp_path, tensors=tensors))


def test_a_pair_that_is_half_there(tmp_path):
    folder = edited(tmp_path, drop=[PREFIX + "lora_B.weight"])
    assert "are a, not a, b" in refused(folder)


def test_another_base(tmp_path):
    message = refused(edited(tmp_path), hidden_size=32)
    assert "[4, 16], where r and the base make it [4, 32]" in message
    assert "'tests/tiny'" in message


def test_files_that_are_not_there_or_damaged(tmp_path):
    folder = edited(tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "not a complete safetensors file" in refused(folder)
    weights.unlink()
    assert "has no adapter_model.safetensors" in refused(folder)
    (folder / "adapter_config.json").write_text("[]")
    weights.write_bytes(b"")
    assert "expected a JSON object" in refused(folder)
    assert "has no adapter_config.json" in refused(tmp_path / "nowhere")


def test_nothing_is_left_of_what_failed(tmp_path):
    base = write_checkpoint(tmp_path / "base", TINY)
    huge = {PREFIX + "lora_A.weight": ones(4, 16) * np.float32(1e38)}
    folder = edited(tmp_path, tensors=huge)
    with pytest.raises(UserError, match=r"q_proj.weight of .* not finite"):
        prepare(base, tmp_path / "new", lora=folder, lora_scale=1000)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_merge_beyond_the_bases_dtype(tmp_path):
    base = write_checkpoint(tmp_path / "base", TINY, dtype="float16")
    folder = edited(tmp_path, tensors={PREFIX + "lora_A.weight": ones(4, 16) * 1e6})
    with pytest.raises(UserError, match=r"q_proj.weight .* beyond what F16 can hold"):
        prepare(base, tmp_path / "new", lora=folder)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_a_scale_that_is_none(tmp_path, scale):
    base = write_checkpoint(tmp_path / "base", TINY)
    with pytest.raises(UserError, match="lora_scale is"):
        prepare(base, tmp_path / "new", lora=GOLDENS / "plain", lora_scale=scale)


def test_a_quantized_base(tmp_path):
    quantized = TINY | {"quantization_config": {"quant_method": "fp8"}}
    write_checkpoint(tmp_path / "quantization_config", quantized)
    # ModelOpt says it in a file of its own.
    base = write_checkpoint(tmp_path / "hf_quant_config.json", TINY)
    (base / "hf_quant_config.json").write_text("{}")
    for name in ("quantization_config", "hf_quant_config.json"):
        with pytest.raises(UserError) as error:
            prepare(tmp_path / name, tmp_path / "new", lora=GOLDENS / "plain")
        assert f"is quantized ({name}), and an adapter cannot" in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (
            lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.int8)}),
            r"q_proj\.weight of .* is I8; an adapter is merged into F32, F16, BF16",
        ),
    ],
    ids=["missing", "integers"],
)
def test_a_base_with_other_tensors(tmp_path, edit, message):
    base = write_checkpoint(tmp_path / "base", TINY)
    tensors = load(base)
    edit(tensors)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(UserError, match=message):
        prepare(base, tmp_path / "new", lora=GOLDENS / "float16")
    assert not (tmp_path / "new").exists()


def test_a_base_without_weights(tmp_path):
    base = write_checkpoint(tmp_path / "base", TINY)
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has neither model\*\.safetensors nor"):
        prepare(base, tmp_path / "new", lora=GOLDENS / "plain")
