"""Hugging Face folders whose tokenizer is in Mistral's own format only."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as MistralCommon

from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.tokenizer import MistralTokenizer
from tests.harness import load_safetensors
from tests.lora_reference import GOLDENS
from tests.lora_reference import TINY as LORA_TINY
from workbench.checkpoints import (
    BASE,
    make_tensors,
    write_checkpoint,
    write_native,
    write_tekken,
)
from workbench.runner import make_pipeline_config
from workbench.tokenizers import write_file

TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


def without_json(folder, **options):
    """As Devstral Small 2507 is published: model*.safetensors and a tekken.json."""
    write_checkpoint(folder, BASE, **options)
    for path in folder.glob("tokenizer*.json"):
        path.unlink()
    write_tekken(folder, BASE["vocab_size"])
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_its_shards_are_linked_under_their_names(tmp_path, monkeypatch, shards):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    source = without_json(tmp_path / "src", shards=shards)
    prepare(source, tmp_path / "dst")
    links = sorted((tmp_path / "dst").glob("*.safetensors"))
    assert [path.name for path in links] == (
        [path.name for path in sorted(source.glob("*.safetensors"))]
    )
    assert len(links) == shards
    assert all(path.resolve() == source / path.name for path in links)
    index = [(d / "model.safetensors.index.json") for d in (tmp_path / "dst", source)]
    assert [path.exists() for path in index] == [shards > 1] * 2
    if shards > 1:
        found, want = (json.loads(path.read_text())["weight_map"] for path in index)
        assert found == want
    weights = load_safetensors(make_pipeline_config(tmp_path / "dst"))
    for name, tensor in make_tensors(BASE).items():
        found = weights[name.removeprefix("model.")]
        assert np.array_equal(np.from_dlpack(found.data), tensor), name


def test_its_tokenizer_is_made(tmp_path):
    source = without_json(tmp_path / "src")
    prepare(source, tmp_path / "dst")
    for name in ("config.json", "tekken.json"):
        found, want = ((tmp_path / d / name).read_text() for d in ("dst", "src"))
        assert json.loads(found) == json.loads(want)
    tokenizer = MistralTokenizer(str(tmp_path / "dst"), None)
    assert tokenizer.uses_mistral_common
    assert len(tokenizer.delegate) == BASE["vocab_size"]


@pytest.mark.parametrize("kind", ["v3 tekken", "v1", "v3", "v7m1"])
def test_its_ids_are_mistrals(tmp_path, kind):
    source = tmp_path / "src"
    source.mkdir()
    file = write_file(kind, source)
    size = MistralCommon.from_file(file).instruct_tokenizer.tokenizer.n_words
    write_checkpoint(source, BASE | TINY | {"vocab_size": size})
    for path in source.glob("tokenizer*.json"):
        path.unlink()
    prepare(source, tmp_path / "dst")
    raw = MistralCommon.from_file(file).instruct_tokenizer.tokenizer
    text = "What is 2+2?  naïve\n"
    found = MistralTokenizer(str(tmp_path / "dst"), None).delegate
    assert found.encode(text) == raw.encode(text, bos=True, eos=False)


def test_what_it_says_of_its_tokenizer_is_kept(tmp_path):
    """A fine-tune may have a template of its own, and that one counts."""
    source = without_json(tmp_path / "src")
    theirs = {"chat_template": "<|{{ messages }}|>", "add_eos_token": True}
    theirs |= {"tokenizer_class": "LlamaTokenizer", "unk_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(theirs))
    prepare(source, tmp_path / "dst")
    tokenizer = MistralTokenizer(str(tmp_path / "dst"), None)
    assert not tokenizer.uses_mistral_common
    assert tokenizer.delegate.chat_template == theirs["chat_template"]
    made = json.loads((tmp_path / "dst" / "tokenizer_config.json").read_text())
    assert made["add_eos_token"] is True
    assert made["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert made["unk_token"] == "<unk>"


@pytest.mark.parametrize(("more", "fits"), [(8, True), (-1, False)])
def test_a_model_may_be_padded(tmp_path, more, fits):
    size = BASE["vocab_size"]
    source = without_json(tmp_path / "src")
    config = BASE | {"vocab_size": size + more}
    (source / "config.json").write_text(json.dumps(config))
    if fits:
        prepare(source, tmp_path / "dst")
        return
    with pytest.raises(UserError, match=f"has {size} tokens, but the model has"):
        prepare(source, tmp_path / "dst")


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"0": {}, "320": {}}, "adds 1 tokens to the 320 of the tokenizer, from '320'"),
        # Python makes no number of so many digits.
        ({"0": {}, "9" * 5000: {}}, "adds 1 tokens to the 320"),
        ({"x": {}}, "adds 1 tokens to the 320"),
        (5, "added_tokens_decoder = 5; expected an object"),
        (True, "added_tokens_decoder = True; expected an object"),
        ({"0": {}, "319": {}}, None),
        (None, None),
    ],
    ids=["more", "long", "word", "number", "boolean", "its own", "null"],
)
def test_tokens_that_it_adds_are_not_lost(tmp_path, added, says):
    source = without_json(tmp_path / "src")
    text = json.dumps({"added_tokens_decoder": added})
    (source / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match=says) if says else nullcontext():
        prepare(source, tmp_path / "dst")


@pytest.mark.parametrize(
    ("added", "says"),
    [
        # As ChatML's fine-tunes of Mistral 7B have it, without added_tokens_decoder.
        (
            {"<|im_end|>": 320, "</s>": 2},
            r"added_tokens\.json adds 1 tokens to the 320",
        ),
        ({"<x>": "7"}, "adds 1 tokens to the 320 of the tokenizer, from '<x>'"),
        ({"<x>": -1}, "adds 1 tokens"),
        ({"<x>": True}, "adds 1 tokens"),
        ([], r"added_tokens\.json has \[\]; expected a JSON object"),
        ({"<unk>": 0, "</s>": 2}, None),
    ],
    ids=["more", "string", "negative", "boolean", "list", "its own"],
)
@pytest.mark.parametrize("lora", [None, GOLDENS / "plain"], ids=["alone", "lora"])
def test_tokens_of_added_tokens_json_are_not_lost(tmp_path, added, says, lora):
    source = write_checkpoint(tmp_path / "src", LORA_TINY | {"vocab_size": 320})
    for path in source.glob("tokenizer*.json"):
        path.unlink()
    write_tekken(source, 320)
    (source / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(UserError, match=says) if says else nullcontext():
        prepare(source, tmp_path / "dst", lora=lora)


def test_of_two_formats_hugging_faces_is_linked(tmp_path):
    source = without_json(tmp_path / "src")
    shutil.copy(
        write_native(tmp_path / "native", BASE) / "consolidated.safetensors", source
    )
    prepare(source, tmp_path / "dst")
    (link,) = (tmp_path / "dst").glob("*.safetensors")
    assert link.resolve() == source / "model.safetensors"


def test_one_with_a_tokenizer_needs_no_prepare(tmp_path):
    source = write_checkpoint(tmp_path / "src", BASE)
    with pytest.raises(UserError, match=r"and tokenizer\.json as it is"):
        prepare(source, tmp_path / "dst")


def test_one_without_any_tokenizer(tmp_path):
    source = without_json(tmp_path / "src")
    (source / "tekken.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json, tekken\.json or tok"):
        prepare(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_a_shard_that_is_missing(tmp_path):
    source = without_json(tmp_path / "src", shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00003"):
        prepare(source, tmp_path / "dst")


@pytest.mark.parametrize("kind", ["v3 tekken", "v13 tekken"])
def test_transformers_makes_no_tokenizer_of_a_tekken(tmp_path, kind):
    """transformers 5 fails at the first, and gives the second ids of its own."""
    source = without_json(tmp_path / "src")
    write_file(kind, source)
    with pytest.raises(UserError, match=r"no tokenizer\.json\. Make .* prepare"):
        MistralTokenizer(str(source), None)
