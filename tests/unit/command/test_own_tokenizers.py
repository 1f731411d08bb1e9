"""Hugging Face folders whose tokenizer is in Mistral's own format only."""

from pathlib import Path

import pytest

from max_mistral.command.checkpoint import needs_json, pick_gguf, read_checkpoint
from max_mistral.errors import UserError
from tests.commands import value
from tests.unit.test_tekken_only import without_json
from workbench.checkpoints import BASE, write_native


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_prepared_once(run, tmp_path, dtype):
    source = without_json(tmp_path / "m", dtype=dtype, shards=2)
    status, found, err = run("serve", source)
    assert status == 0
    prepared = Path(value(found, "--model"))
    assert (prepared / "tokenizer.json").exists()
    assert value(found, "--served-model-name") == str(source)
    assert "Preparing" in err
    names = [found[i + 1] for i, flag in enumerate(found) if flag == "--weight-path"]
    shards = [str(path) for path in sorted(source.glob("*.safetensors"))]
    # MAX does not look for weights in float16.
    assert names == (shards if dtype == "float16" else [])
    _, again, err = run("serve", source)
    assert again == found
    assert "Preparing" not in err


def test_with_its_own_weights_named(run, tmp_path, monkeypatch):
    source = without_json(tmp_path / "m")
    monkeypatch.chdir(source)
    for given in (source / "model.safetensors", "model.safetensors"):
        _, found, _ = run("serve", source, "--weight-path", given)
        assert (Path(value(found, "--model")) / "tokenizer.json").exists()
        assert value(found, "--weight-path") == str(source / "model.safetensors")


def test_with_other_weights_it_is_taken_as_it_is(run, tmp_path, gguf):
    source = without_json(tmp_path / "m")
    own = source / "x.safetensors"
    (source / "model.safetensors").rename(own)
    for weights in (gguf, own):
        _, found, _ = run("generate", source, "--weight-path", weights)
        assert value(found, "--model") == str(source)


def test_of_two_formats_hugging_faces_is_taken(tmp_path):
    source = without_json(write_native(tmp_path / "m", BASE))
    found = read_checkpoint(source)
    assert [path.name for path in found.weights] == ["model.safetensors"]
    assert found.prepare


@pytest.mark.parametrize(
    ("names", "needs"),
    [
        (["tekken.json"], True),
        (["tekken.json", "tokenizer_config.json", "added_tokens.json"], True),
        (["tokenizer.model"], True),
        (["tokenizer.model.v3"], True),
        (["tekken.json", "tokenizer.json"], False),
        (["tokenizer.model", "tokenizer.json"], False),
        (["tokenizer.model", "added_tokens.json"], False),
        (["vocab.json", "merges.txt"], False),
        ([], False),
    ],
)
def test_which_folders_are_prepared(names, needs):
    assert needs_json(names) == needs


@pytest.mark.parametrize(
    "other",
    [
        "m-mmproj-F16.gguf",
        "m.MMPROJ.gguf",
        "sub/mmproj.gguf",
        "m-imatrix.gguf",
        "imatrix_unsloth.gguf",
    ],
)
def test_what_is_no_model_is_no_choice(run, gguf, other):
    assert pick_gguf(["m-Q8_0.gguf", other], "repo") == "m-Q8_0.gguf"
    with pytest.raises(UserError, match="no GGUF file of a model"):
        pick_gguf([other], "repo")
    (gguf.parent / Path(other).name).touch()
    assert value(run("generate", gguf.parent)[1], "--weight-path") == str(gguf)


def test_a_model_that_was_quantized_by_an_imatrix():
    assert pick_gguf(["m-imatrix-Q4_K_M.gguf"], "repo", "Q4_K_M")
