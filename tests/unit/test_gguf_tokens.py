"""Tokens of a GGUF file: matched whole, the end of an answer, with a space or not."""

import json

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.prepare.gguf_config import read_config
from max_mistral.prepare.gguf_tokenizer import write_tokenizer
from max_mistral.tokenizer import MistralTokenizer
from max_mistral.weights.gguf_file import GGUFCheckpoint
from tests.unit.test_gguf import write_gguf, write_vocabulary
from tests.unit.test_gguf_header import edited
from workbench.runner import make_pipeline_config

# ``tokenizer.ggml.token_type``
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHATML = ["<|im_end|>", "<|im_start|>"]
LETTERS = ["▁a", "ab", "▁ab", "▁", "a", "b", "<|", "<", "|"]


def write_sentencepiece(path, added, added_type=USER_DEFINED, score=-1000.0, **more):
    """A small one, with tokens behind it as llama.cpp's old convert.py adds them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *LETTERS]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(LETTERS)
    scores = [0.0] * 259 + [-1.0 - i for i in range(len(LETTERS))]
    types += [added_type] * len(added)
    scores += [score] * len(added)
    return write_vocabulary(
        path, "llama", None, pieces + added, types, scores, add_bos_token=True, **more
    )


def write_bytes(path, added, added_type=USER_DEFINED, pre="tekken", **more):
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    types = [CONTROL] * 3 + [NORMAL] * 257 + [added_type] * len(added)
    tokens += ["Ġa", *added]
    merges = ["Ġ a"]
    return write_vocabulary(
        path, "gpt2", pre, tokens, types, None, merges, add_bos_token=True, **more
    )


WRITERS = {"llama": write_sentencepiece, "gpt2": write_bytes}


def load(checkpoint, folder):
    write_tokenizer(checkpoint, folder)
    return AutoTokenizer.from_pretrained(folder)


def tokens_of(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


@pytest.mark.parametrize("score", [-1000.0, 0.0])
def test_a_user_defined_token_of_sentencepiece_is_whole(tmp_path, score):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", CHATML, score=score)
    tokenizer = load(checkpoint, tmp_path)
    assert tokens_of(tokenizer, "<|im_start|>ab\n<|im_end|>") == (
        ["<s>", "<|im_start|>", "ab", "<0x0A>", "<|im_end|>"]
    )
    # What is no such token is cut as ever.
    assert tokens_of(tokenizer, "ab<|b") == ["<s>", "▁ab", "<|", "b"]


@pytest.mark.parametrize("pre", ["tekken", "gpt-2", "smollm"])
def test_a_user_defined_token_of_bytes_is_whole(tmp_path, pre):
    checkpoint = write_bytes(tmp_path / "m.gguf", CHATML, pre=pre)
    tokenizer = load(checkpoint, tmp_path)
    assert tokens_of(tokenizer, "b<|im_start|> a<|im_end|>") == (
        ["<s>", "b", "<|im_start|>", "Ġa", "<|im_end|>"]
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_user_defined_token_is_text(tmp_path, kind):
    """It keeps its id, and an answer has it; what ends the answer is no text."""
    checkpoint = WRITERS[kind](tmp_path / "m.gguf", [*CHATML, "  ", "<b>"])
    tokenizer = load(checkpoint, tmp_path)
    names = checkpoint.metadata.get("tokenizer.ggml.tokens")
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(names)}
    assert len(tokenizer) == len(names)
    text = "b<|im_start|>a  b <b> ab\n<b>é"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert {names.index(each) for each in ("<|im_start|>", "  ", "<b>")} <= set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    end = names.index("<|im_end|>")
    assert tokenizer.decode([*ids, end], skip_special_tokens=True) == text
    assert tokenizer.decode([*ids, end]) == text + "<|im_end|>"


def test_the_longest_of_them_is_taken(tmp_path):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", ["<b>", "<b><b>", "<b"])
    tokenizer = load(checkpoint, tmp_path)
    assert tokens_of(tokenizer, "<b><b><b><ba") == (["<s>", "<b><b>", "<b>", "<b", "a"])


def test_without_a_space_before_the_text(tmp_path):
    """``tokenizer.ggml.add_space_prefix``, as llama.cpp has it."""
    for prefixed, first in ((True, "▁ab"), (False, "ab")):
        folder = tmp_path / str(prefixed)
        folder.mkdir()
        checkpoint = write_sentencepiece(
            folder / "m.gguf", CHATML, add_space_prefix=prefixed
        )
        tokenizer = load(checkpoint, folder)
        assert tokens_of(tokenizer, "ab ab") == ["<s>", first, "▁ab"]
        # A text that begins with a space has no other put before it.
        for text in ("ab", "a  b", "<|im_start|> a", *([] if prefixed else [" ab"])):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids) == text


def test_without_a_space_an_answer_keeps_its_own(tmp_path):
    """MAX decodes token by token."""
    write_tokenizer(
        write_sentencepiece(tmp_path / "m.gguf", [], add_space_prefix=False), tmp_path
    )
    tokenizer = MistralTokenizer(str(tmp_path), None)
    ids = tokenizer.delegate.encode("a ab", add_special_tokens=False)
    assert not tokenizer._enable_llama_whitespace_fix
    assert [tokenizer.delegate.decode([i]) for i in ids] == ["a", " ab"]


def test_a_space_prefix_that_is_none(tmp_path):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", [], add_space_prefix=3)
    with pytest.raises(UserError, match=r"add_space_prefix = 3; expected true or f"):
        write_tokenizer(checkpoint, tmp_path)


def ends_of(path):
    """What config.json says, and at which ids MAX stops."""
    folder = path.with_suffix("")
    prepare(path, folder)
    found = json.loads((folder / "config.json").read_text())["eos_token_id"]
    config = make_pipeline_config(folder, weight_path=[path], max_length=32)
    return found, MistralTokenizer(str(folder), config)


def test_one_end_is_a_number(tmp_path):
    found, tokenizer = ends_of(write_gguf(tmp_path / "m.gguf"))
    assert (found, tokenizer.eos_token_ids) == (2, {2})


@pytest.mark.parametrize("key", ["eot_token_id", "eom_token_id"])
def test_every_end_that_is_named_ends_an_answer(tmp_path, key):
    path = edited(tmp_path / "m.gguf", **{f"tokenizer__ggml__{key}": 1})
    found, tokenizer = ends_of(path)
    assert (found, tokenizer.eos_token_ids) == ([2, 1], {1, 2})
    same = edited(tmp_path / "s.gguf", **{f"tokenizer__ggml__{key}": 2})
    assert read_config(GGUFCheckpoint(same))["eos_token_id"] == 2


@pytest.mark.parametrize("key", ["eot_token_id", "eom_token_id"])
@pytest.mark.parametrize("value", [-1, 4, "x"])
def test_an_end_that_is_no_token_is_refused(tmp_path, key, value):
    path = edited(tmp_path / "m.gguf", **{f"tokenizer.ggml.{key}": value})
    with pytest.raises(UserError, match=f"{key} = .*; expected a whole number from 0"):
        read_config(GGUFCheckpoint(path))


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"]
)
def test_an_end_is_known_by_its_text(tmp_path, text, kind):
    path = edited(
        tmp_path / "m.gguf",
        tokenizer__ggml__tokens=["a", "b", "</s>", text],
        tokenizer__ggml__token_type=[NORMAL, NORMAL, CONTROL, kind],
        tokenizer__ggml__merges=None,
    )
    config = read_config(GGUFCheckpoint(path))
    # A piece of text is none.
    assert config["eos_token_id"] == (2 if kind == NORMAL else [2, 3])
