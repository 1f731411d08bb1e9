"""Tokens of a GGUF file: merged or whole, ends, spaces before, the chat template."""

import asyncio
import json

import numpy as np
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as MistralCommon
from sentencepiece import SentencePieceProcessor
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
from tests.unit.test_mistral_tokenizer import CHATS, TEXTS
from workbench.runner import make_pipeline_config
from workbench.tokenizers import tokenizer_file

# ``tokenizer.ggml.token_type``
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHATML = ["<|im_end|>", "<|im_start|>"]
LETTERS = ["▁a", "ab", "▁ab", "▁", "a", "b", "<|", "<", "|"]
SCORES = [-1.0 - i for i in range(len(LETTERS))]


def write_sentencepiece(
    path, added, added_type=USER_DEFINED, score=-1000.0, letter_scores=SCORES, **more
):
    """A small one, with tokens behind it as llama.cpp's old convert.py adds them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *LETTERS]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(LETTERS)
    scores = [0.0] * 259 + letter_scores
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
        ["<s>", "<|im_start|>", "▁ab", "<0x0A>", "<|im_end|>"]
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
    if kind == "llama":
        # As in llama.cpp, text behind such a token begins with a space.
        text = "b<|im_start|> a   b <b> ab\n<b> é"
        assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert {names.index(each) for each in ("<|im_start|>", "  ", "<b>")} <= set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    end = names.index("<|im_end|>")
    assert tokenizer.decode([*ids, end], skip_special_tokens=True) == text
    assert tokenizer.decode([*ids, end]) == text + "<|im_end|>"


def test_the_longest_of_them_is_taken(tmp_path):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", ["<b>", "<b><b>", "<b"])
    tokenizer = load(checkpoint, tmp_path)
    assert tokens_of(tokenizer, "<b><b><b><ba") == ["<s>", "<b><b>", "<b>", "<b", "▁a"]


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


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab", ["▁ab"]),
        ("<s>ab ab", ["<s>", "▁ab", "▁ab"]),
        ("<s>ab</s>b", ["<s>", "▁ab", "</s>", "▁", "b"]),
        (
            "<|im_start|>ab<|im_end|>\n",
            ["<|im_start|>", "▁ab", "<|im_end|>", "▁", "<0x0A>"],
        ),
        # One that is there is not doubled.
        ("<s> ab", ["<s>", "▁ab"]),
        ("<|im_start|> ab", ["<|im_start|>", "▁ab"]),
        ("<s>  ab", ["<s>", "▁", "▁ab"]),
        # Nothing is no text.
        ("<s></s>", ["<s>", "</s>"]),
    ],
)
def test_text_behind_a_special_token_begins_with_a_space(tmp_path, text, tokens):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", CHATML, CONTROL)
    tokenizer = load(checkpoint, tmp_path)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_without_a_space_an_answer_keeps_its_own(tmp_path):
    """MAX decodes token by token."""
    write_tokenizer(
        write_sentencepiece(tmp_path / "m.gguf", [], add_space_prefix=False), tmp_path
    )
    tokenizer = MistralTokenizer(str(tmp_path), None)
    ids = tokenizer.delegate.encode("a ab", add_special_tokens=False)
    assert not tokenizer._enable_llama_whitespace_fix
    assert [tokenizer.delegate.decode([i]) for i in ids] == ["a", " ab"]


def test_with_a_space_an_answer_keeps_its_own(tmp_path):
    """MAX decodes token by token, behind a special token too."""
    write_tokenizer(write_sentencepiece(tmp_path / "m.gguf", CHATML), tmp_path)
    tokenizer = MistralTokenizer(str(tmp_path), None)
    ids = tokenizer.delegate.encode("<|im_start|>a ab", add_special_tokens=False)
    one_by_one = [asyncio.run(tokenizer.decode(np.array([i]))) for i in ids]
    assert one_by_one == ["<|im_start|>", " a", " ab"]
    assert asyncio.run(tokenizer.decode(np.array(ids))) == "".join(one_by_one)


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


@pytest.mark.parametrize(
    ("scores", "text", "tokens"),
    [
        # The first merge of sentencepiece's trainer.
        ([-0.0, *SCORES[1:]], "aa ab", ["▁a", "a", "▁ab"]),
        # What extends a vocabulary.
        ([SCORES[0], 0.0, *SCORES[2:]], "aab ab", ["▁a", "ab", "▁ab"]),
    ],
)
def test_a_piece_with_the_score_0_merges(tmp_path, scores, text, tokens):
    checkpoint = write_sentencepiece(tmp_path / "m.gguf", [], letter_scores=scores)
    assert tokens_of(load(checkpoint, tmp_path), text) == ["<s>", *tokens]


def test_scores_that_say_nothing_are_refused(tmp_path):
    """As the gguf package's ``LlamaHfVocab`` writes them."""
    checkpoint = write_sentencepiece(
        tmp_path / "m.gguf", CHATML, letter_scores=[-1000.0] * len(LETTERS)
    )
    with pytest.raises(UserError, match=r"of all 4 pieces of text = -1000\.0") as error:
        write_tokenizer(checkpoint, tmp_path)
    assert f"--model FOLDER --weight-path {checkpoint.path}." in str(error.value)


def write_mistrals_own(folder, kind, **more):
    """A tokenizer.model as llama.cpp's converter writes it: none is user-defined."""
    model = SentencePieceProcessor(model_file=str(tokenizer_file(kind)))
    kinds = {
        UNKNOWN: model.is_unknown,
        CONTROL: model.is_control,
        BYTE: model.is_byte,
    }
    types = [
        next((kind for kind, is_one in kinds.items() if is_one(i)), NORMAL)
        for i in range(len(model))
    ]
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    scores = [model.get_score(i) for i in range(len(model))]
    path = folder / "m.gguf"
    return write_vocabulary(path, "llama", None, pieces, types, scores, **more)


@pytest.mark.parametrize("kind", ["v1", "v3", "v7"])
def test_mistrals_own_vocabulary_with_a_template_by_name(tmp_path, kind):
    name = f"mistral-{kind}"
    checkpoint = write_mistrals_own(tmp_path, kind, **{"tokenizer.chat_template": name})
    tokenizer = load(checkpoint, tmp_path)
    own = MistralCommon.from_file(tokenizer_file(kind))
    for chat in CHATS.values():
        want = own.encode_chat_completion(ChatCompletionRequest(messages=chat)).tokens
        found = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert found == want
    model = SentencePieceProcessor(model_file=str(tokenizer_file(kind)))
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == model.encode(text)
    # User-defined in v3 and v7, and with no type that says so.
    text = "a [REFERENCE_DOC_0]"
    assert tokenizer.encode(text)[-1] == model.encode(text)[-1]


@pytest.mark.parametrize("kind", ["v3 tekken", "v7 tekken"])
def test_a_template_by_name_of_tekken(tmp_path, real_model, kind):
    """It is that of the checkpoint's own ``tekken.json``."""
    named = {"tokenizer.chat_template": f"mistral-{kind.replace(' ', '-')}"}
    tokenizer = load(write_bytes(tmp_path / "m.gguf", [], **named), tmp_path)
    own = real_model(kind).parent / "tokenizer_config.json"
    assert tokenizer.chat_template == json.loads(own.read_text())["chat_template"]


@pytest.mark.parametrize("template", ["", "chatml", "mistral-v9"])
def test_another_name_is_no_template(tmp_path, template, caplog):
    named = {"tokenizer.chat_template": template}
    tokenizer = load(write_bytes(tmp_path / "m.gguf", [], **named), tmp_path)
    assert tokenizer.chat_template is None
    said = f"chat_template = {template!r}, which is no Jinja template" in caplog.text
    assert said == bool(template)
