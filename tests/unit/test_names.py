"""The table of names: complete, anchored, and clear about what does not fit."""

from types import SimpleNamespace

import pytest

from max_mistral.errors import UserError
from max_mistral.weights import check_names
from max_mistral.weights.check_names import check_tensors
from max_mistral.weights.names import (
    TENSORS,
    dropped_tensors,
    expected_tensors,
    find_scheme,
    find_text_tower,
    in_text_tower,
)

CONFIG = SimpleNamespace(
    vocab_size=320,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    tie_word_embeddings=False,
)
TIED = SimpleNamespace(**vars(CONFIG) | {"tie_word_embeddings": True})
Q1 = "model.layers.1.self_attn.q_proj.weight"


def shapes(config=CONFIG):
    return {name: tensor.shape for name, tensor in expected(config).items()}


def expected(config=CONFIG, scheme="huggingface", **kwargs):
    tied = config.tie_word_embeddings
    return expected_tensors(config, scheme, tied=tied, **kwargs)


def check(found, config=CONFIG, tower=""):
    tied = config.tie_word_embeddings
    check_tensors(
        found,
        expected(config, tower=tower),
        dropped_tensors(config, "huggingface", tied=tied, tower=tower),
        "model.safetensors",
    )


def test_shapes_follow_head_dim_not_hidden_over_heads():
    assert shapes()[Q1] == (4 * 32, 96)
    assert shapes()["model.layers.1.self_attn.k_proj.weight"] == (32, 96)
    assert shapes()["model.layers.1.self_attn.o_proj.weight"] == (96, 4 * 32)
    assert shapes()["model.layers.0.mlp.down_proj.weight"] == (96, 160)


@pytest.mark.parametrize("scheme", ["graph", "huggingface", "native"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_scheme_is_that_of_most_names(scheme, tied):
    names = list(expected_tensors(CONFIG, scheme, tied=tied))
    assert find_scheme(names, CONFIG) == scheme
    assert find_scheme([*names[:-1], "other"], CONFIG) == scheme


@pytest.mark.parametrize("scheme", ["graph", "huggingface", "native", "gguf"])
def test_every_scheme_names_every_tensor_once(scheme):
    names = expected(scheme=scheme)
    per_layer = sum("{i}" in row.graph for row in TENSORS)
    assert len(names) == per_layer * 2 + len(TENSORS) - per_layer
    assert len({tensor.graph for tensor in names.values()}) == len(names)


def test_a_complete_checkpoint_passes():
    check(shapes())


def test_a_tied_checkpoint_has_no_head_but_may_carry_a_copy():
    assert "lm_head.weight" not in shapes(TIED)
    check(shapes(TIED) | {"lm_head.weight": (320, 96)}, TIED)


def test_rotary_buffers_of_old_checkpoints_are_dropped_by_name():
    check(shapes() | {"model.layers.1.self_attn.rotary_emb.inv_freq": (16,)})


def test_a_missing_tensor_is_named():
    found = shapes()
    del found[Q1]
    with pytest.raises(UserError, match=f"{Q1} is missing"):
        check(found)


def test_a_misspelt_tensor_is_named_with_its_correction():
    found = shapes()
    found["model.layers.1.self_attn.q_prj.weight"] = found.pop(Q1)
    with pytest.raises(UserError) as error:
        check(found)
    assert (
        "model.layers.1.self_attn.q_prj.weight is unknown; "
        f"did you mean {Q1}?" in str(error.value)
    )


def test_a_surplus_tensor_is_named():
    # Layer 2 of a model of two layers: a wrong num_hidden_layers.
    surplus = "model.layers.2.self_attn.q_proj.weight"
    # No other layer's tensor is meant.
    with pytest.raises(UserError, match=f"{surplus} is unknown\\n"):
        check(shapes() | {surplus: (128, 96)})


def test_hints_are_made_for_what_is_shown_alone(monkeypatch):
    """One takes milliseconds, and a file may have a hundred thousand names."""
    asked = []

    def matches(name, known, n):
        asked.append(name)
        assert len(known) < len(TENSORS)
        return []

    monkeypatch.setattr(check_names.difflib, "get_close_matches", matches)
    found = {f"model.layers.{i}.bonus": (1,) for i in range(1000)}
    with pytest.raises(UserError, match="and 1011 more") as error:
        check(found)
    assert list(dict.fromkeys(asked)) == list(found)[:10]
    assert str(error.value).count("is unknown") == 10


@pytest.mark.parametrize("name", ["x" * 10**6, "a\x1b[2Jb\nc"])
def test_a_hostile_name_is_shown_in_one_short_line(name):
    with pytest.raises(UserError) as error:
        check(shapes() | {name: (1,)})
    text = str(error.value)
    assert len(text) < 500
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text


def test_a_name_that_only_contains_a_known_one_is_unknown():
    name = "draft.model.norm.weight"
    with pytest.raises(UserError, match=f"{name} is unknown"):
        check(shapes() | {name: (96,)})


def test_a_wrong_shape_is_named_with_both_shapes():
    with pytest.raises(UserError) as error:
        check(shapes() | {Q1: (96, 96)})
    assert f"{Q1} has shape [96, 96], but config.json makes it [128, 96]" in str(
        error.value
    )


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(UserError) as error:
        check({})
    assert len(str(error.value).splitlines()) == 13
    assert "and 11 more" in str(error.value)


@pytest.mark.parametrize(
    ("tower", "layer", "head"),
    [
        (
            "language_model.",
            "language_model.model.layers.1.self_attn.q_proj.weight",
            "language_model.lm_head.weight",
        ),
        (
            "model.language_model.",
            "model.language_model.layers.1.self_attn.q_proj.weight",
            "lm_head.weight",
        ),
    ],
)
def test_text_towers(tower, layer, head):
    names = {in_text_tower(name, tower): shape for name, shape in shapes().items()}
    assert {layer, head} <= names.keys()
    assert find_text_tower(names) == tower
    check(names, tower=tower)
    with pytest.raises(UserError, match="is unknown"):
        check(names | {"vision_towel.weight": (1,)}, tower=tower)


def test_a_text_only_checkpoint_has_no_tower():
    assert find_text_tower(shapes()) == ""
    assert [in_text_tower(name, "") for name in shapes()] == list(shapes())
