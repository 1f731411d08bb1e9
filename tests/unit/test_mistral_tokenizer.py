"""Converted tokenizers against sentencepiece, tiktoken and mistral-common."""

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from max_mistral.errors import UserError
from max_mistral.prepare.bpe import find_merges
from max_mistral.prepare.mistral_tokenizer import find_tokenizer, write_tokenizer
from max_mistral.tekken import PATTERN, check_pattern
from workbench.tokenizers import BUNDLED, tokenizer_file

ROOT = Path(__file__).parent.parent.parent

SYSTEM = {"role": "system", "content": "Be brief; naïve façades — 日本語 ok."}
CHATS = {
    "one": [{"role": "user", "content": "What is 2+2?"}],
    "system": [SYSTEM, {"role": "user", "content": "Hello\n\n  there 🎉"}],
    "turns": [
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?  "},
        {"role": "user", "content": "  def f(x):\n        return x\n"},
        {"role": "assistant", "content": "It returns x."},
        {"role": "user", "content": "Thanks"},
    ],
}
TEXTS = [
    "Hello world",
    "  two  spaces\n\nnew 😀 ünï",
    "   ",
    " x",
    "a\tb",
    "don't  stop—naïve façade",
    "x" * 50,
    "\n\n  \n",
    " " * 40 + "if x:\n" + " " * 27 + "y",
    "1234567890 3.14",
    "日本語のテキスト",
    (ROOT / "max_mistral" / "mistral.py").read_text(),
]


def noise(count):
    rng = random.Random(0)
    letters = "ab  \n\tcé漢🎉"
    return [
        "".join(rng.choice(letters) for _ in range(rng.randint(1, 60)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=list(BUNDLED))
def converted(request, tmp_path_factory):
    """The original file, and what transformers loads of it."""
    path = tokenizer_file(request.param)
    folder = tmp_path_factory.mktemp("tokenizer")
    size = write_tokenizer(path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == size
    return path, tokenizer


def original(path):
    """The file's own encoder, by the library it is made for."""
    if path.suffix != ".json":
        return SentencePieceProcessor(model_file=str(path)).encode
    file = json.loads(path.read_text())
    special = file["config"]["default_num_special_tokens"]
    size = file["config"]["default_vocab_size"] - special
    encoding = tiktoken.Encoding(
        "tekken",
        pat_str=file["config"]["pattern"],
        mergeable_ranks={
            base64.b64decode(token["token_bytes"]): token["rank"]
            for token in file["vocab"][:size]
        },
        special_tokens={},
    )
    return lambda text: [special + i for i in encoding.encode_ordinary(text)]


def test_text_is_cut_as_the_original_does(converted):
    path, tokenizer = converted
    encode = original(path)
    for text in TEXTS + noise(200):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == encode(text), text
        assert tokenizer.decode(ids) == text


def test_a_prompt_begins_with_bos(converted):
    path, tokenizer = converted
    assert tokenizer.encode("hi") == [1, *original(path)("hi")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize("chat", list(CHATS))
def test_chats_are_those_of_mistral_common(converted, chat):
    path, tokenizer = converted
    ids = tokenizer.apply_chat_template(CHATS[chat], tokenize=True, return_dict=False)
    request = ChatCompletionRequest(messages=CHATS[chat])
    assert (
        ids == MistralTokenizer.from_file(path).encode_chat_completion(request).tokens
    )


def test_the_newest_tokenizer_of_a_folder_is_taken(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        find_tokenizer(tmp_path)
    for name in ("tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v7m1"):
        (tmp_path / name).touch()
        assert find_tokenizer(tmp_path).name == name
    (tmp_path / "tekken.json").touch()
    assert find_tokenizer(tmp_path).name == "tekken.json"


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3"])
def test_a_device_is_no_tokenizer(tmp_path, name):
    """Its bytes do not end. The Hub's cache has links, but to files."""
    (tmp_path / "blob").touch()
    (tmp_path / name).symlink_to(tmp_path / "blob")
    assert find_tokenizer(tmp_path).name == name
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="has no tokenizer"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model"])
def test_a_broken_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"config": 1')
    with pytest.raises(UserError, match=f"{name} is not "):
        write_tokenizer(tmp_path / name, tmp_path)


def small_tekken():
    """A tekken of 3 special tokens and the 256 bytes."""
    tokens = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()}
        for i in range(256)
    ]
    return {
        "config": {
            "pattern": PATTERN,
            "default_vocab_size": 259,
            "default_num_special_tokens": 3,
            "version": "v3",
        },
        "special_tokens": [{"token_str": t} for t in ("<unk>", "<s>", "</s>")],
        "vocab": tokens,
    }


def write_small(folder, file):
    (folder / "tekken.json").write_text(json.dumps(file))
    return write_tokenizer(folder / "tekken.json", folder)


def test_a_small_tekken(tmp_path):
    assert write_small(tmp_path, small_tekken()) == 259


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("config", "default_num_special_tokens"), 2**31, "default_num_special_tokens"),
        (("config", "default_num_special_tokens"), -1, "default_num_special_tokens"),
        (("config", "default_vocab_size"), 2**31, "default_vocab_size"),
        (("config", "default_vocab_size"), "259", "default_vocab_size"),
        (("config", "pattern"), 7, "pattern"),
        # Found by test_fuzz.py.
        (("config", "pattern"), "+", "pattern = '\\+'; expected the one of Mistral's"),
        # Of a text of 40 letters it takes hours.
        (("config", "pattern"), r"(?:a|(?=a)a)*b|.", "pattern"),
        (("config", "version"), 3, "version"),
        (("config", "version"), "v", "version"),
        (("config",), None, "config"),
        (("vocab", 7, "rank"), 2**31, r"vocab\[7\] has rank = 2147483648"),
        (("vocab", 7, "rank"), -1, "rank"),
        (("vocab", 7, "rank"), 8, "255 tokens, not 256"),
        (("vocab", 7, "token_bytes"), "*", "token_bytes"),
        (("vocab", 7, "token_bytes"), None, "token_bytes"),
        (("vocab", 7), "x", r"vocab\[7\]"),
        (("vocab",), {}, "vocab"),
        (("special_tokens", 0, "token_str"), "[U]", r"has no <unk> \(expected id 0\)"),
        (("special_tokens", 1), "<s>", r"special_tokens\[1\]"),
        (("special_tokens", 1, "token_str"), 7, "token_str"),
        (("special_tokens", 1, "token_str"), "<unk>", "special tokens"),
    ],
)
def test_a_tekken_with_a_bad_value_is_refused(tmp_path, at, value, message):
    file = small_tekken()
    part = file
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = value
    with pytest.raises(UserError, match=message):
        write_small(tmp_path, file)


@pytest.mark.parametrize("kind", [k for k in BUNDLED if "tekken" in k])
def test_mistrals_own_files_have_the_one_pattern(kind):
    check_pattern(tokenizer_file(kind))


def test_a_piece_that_is_too_long(tmp_path):
    file = small_tekken()
    long = base64.b64encode(b"x" * 2000).decode()
    file["vocab"].append({"rank": 256, "token_bytes": long})
    file["config"]["default_vocab_size"] = 260
    with pytest.raises(UserError, match="a piece of 2000"):
        write_small(tmp_path, file)


def test_pieces_made_of_each_other_in_too_many_ways():
    pieces = {"a" * i + "b" * j: -i - j for i in range(100) for j in range(100)}
    del pieces[""]
    with pytest.raises(UserError, match="made of each other in more than"):
        find_merges(pieces)
