"""``tekken.json`` and ``tokenizer.model*`` as Hugging Face files.

Both are byte-pair encodings that Hugging Face's ``tokenizers`` can run. What
they give is held against sentencepiece, tiktoken and mistral-common in
``tests/unit/test_mistral_tokenizer.py``.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import (
    Regex,
    Tokenizer,
    pre_tokenizers,
)

from ..errors import UserError, shown
from ..fields import MOST_TOKENS, Fields, read_json, read_whole
from ..tekken import pattern_of
from .bpe import (
    UNK,
    add_bos,
    byte_spelling,
    find_merges,
    make_byte_level,
    make_sentencepiece,
    write,
)
from .chat_template import chat_template

_BOS, _EOS = "<s>", "</s>"
_ADDED = "added_tokens_decoder"

# All tekken files so far have 1000.
_MOST_SPECIAL = 2**16

# Tekken files up to version 7 leave out their first special tokens
# (mistral-common, ``tekken.py``).
_TEKKEN_SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]


def find_tokenizer(folder: Path) -> Path:
    """Returns the ``tekken.json`` or the newest ``tokenizer.model*`` of ``folder``.

    Raises:
        UserError: (a ``ValueError``) if there is neither.
    """
    tekken = folder / "tekken.json"
    # A link may be to a device, whose bytes do not end.
    if tekken.is_file():
        return tekken
    models = filter(Path.is_file, folder.glob("tokenizer.model*"))
    found = sorted(models, key=lambda path: _version(path))
    if not found:
        raise UserError(
            f"{folder} has no tokenizer.json, tekken.json or tokenizer.model. "
            "Copy the one that belongs to the checkpoint."
        )
    return found[-1]


def write_tokenizer(path: Path, folder: Path) -> int:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Args:
        path: A ``tekken.json`` or a sentencepiece ``tokenizer.model*``.
        folder: Where to.

    Returns:
        How many tokens there are.

    Raises:
        UserError: (a ``ValueError``) if the file is not what its name says.
    """
    read = _read_tekken if path.suffix == ".json" else _read_sentencepiece
    try:
        tokenizer, template = read(path)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete tokenizer ({error}). Fetch it again."
        ) from error
    for token, expected in ((UNK, 0), (_BOS, 1), (_EOS, 2)):
        found = tokenizer.token_to_id(token)
        if found != expected:
            what = f"no {token}" if found is None else f"{token} at id {found}"
            raise UserError(
                f"{path} has {what} (expected id {expected}). This is not a Mistral "
                "tokenizer: copy the one of the checkpoint."
            )
    add_bos(tokenizer, _BOS)
    write(tokenizer, folder)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": _BOS,
        "eos_token": _EOS,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    if tokenizer.token_to_id("<pad>") is not None:
        config["pad_token"] = "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizer.get_vocab_size()


def refuse_more_tokens(source: Path, size: int) -> None:
    """Raises a ``UserError`` if a folder adds tokens to the ``size`` of its tokenizer.

    transformers would add them; what is written here would lack them.
    """
    added: dict[Path, list[str]] = {}
    path = source / "tokenizer_config.json"
    if path.exists():
        theirs = read_json(path)
        fields = Fields(str(path), theirs.get)
        if fields.has(_ADDED):
            fields.fields(_ADDED)  # or raises
        # Of thousands of digits Python makes no number.
        added[path] = [
            key
            for key in theirs.get(_ADDED) or {}
            if not key.isdecimal() or len(key) > 9 or int(key) >= size
        ]
    path = source / "added_tokens.json"
    if path.exists():
        added[path] = [
            token
            for token, index in read_json(path).items()
            if type(index) is not int or not 0 <= index < size
        ]
    for path, more in added.items():
        if more:
            raise UserError(
                f"{path} adds {len(more)} tokens to the {size} of the tokenizer, from "
                f"{shown(more[0])} on. Make a tokenizer.json with "
                "transformers: AutoTokenizer.from_pretrained, then save_pretrained."
            )


def _read_tekken(path: Path) -> tuple[Tokenizer, str]:
    """The byte-level BPE of tiktoken behind a block of special tokens; a template."""
    file = Fields(str(path), read_json(path).get)
    config = file.fields("config")
    total = config.integer("default_vocab_size", high=MOST_TOKENS)
    count = config.integer("default_num_special_tokens", 0, min(total, _MOST_SPECIAL))
    special = _TEKKEN_SPECIAL
    if file.get("special_tokens"):
        special = [
            Fields(f"{path}: special_tokens[{i}]", token.get).string("token_str")
            for i, token in enumerate(file.items("special_tokens", dict, count))
        ]
    special = special + [f"<SPECIAL_{i}>" for i in range(len(special), count)]
    ranks = _tekken_ranks(file, total - count)
    names = len(set(special))
    if not len(special) == names == count:
        raise ValueError(f"{len(special)} special tokens, {names} of them different")
    spell = byte_spelling()

    def spelled(token: bytes) -> str:
        return "".join(spell[byte] for byte in token)

    vocab = {token: i for i, token in enumerate(special)}
    vocab |= {spelled(token): count + rank for token, rank in ranks.items()}
    merges = [(spelled(left), spelled(right)) for left, right in find_merges(ranks)]
    if len(vocab) != total:
        raise ValueError(f"{len(vocab)} different tokens, not {total}")
    pattern, version = pattern_of(config), config.string("version")
    if not re.fullmatch(r"v\d{1,4}", version):
        config.refuse("version", version, "one such as 'v3'")
    tokenizer = make_byte_level(
        vocab, merges, tekken_cuts(pattern), special, whole_words=True
    )
    settings = file.get("model_settings_builder")
    template = chat_template(
        int(version[1:]), special, sentencepiece=False, settings=settings
    )
    return tokenizer, template


def _tekken_ranks(file: Fields, size: int) -> dict[bytes, int]:
    """The pieces that are no special tokens, and in what order they merge."""
    ranks: dict[bytes, int] = {}
    for i, token in enumerate(file.items("vocab", dict, MOST_TOKENS)[:size]):
        fields = Fields(f"{file.source}: vocab[{i}]", token.get)
        # The ranks are ids too, so there are no others and no gaps.
        rank = fields.integer("rank", 0, size - 1)
        try:
            piece = base64.b64decode(fields.string("token_bytes"), validate=True)
        except ValueError:
            fields.refuse("token_bytes", fields.get("token_bytes"), "base64")
        ranks[piece] = rank
    if len(ranks) != size or len(set(ranks.values())) != size:
        raise ValueError(f"{len(set(ranks.values()))} tokens, not {size}")
    return ranks


def tekken_cuts(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    """Returns how tekken cuts text before BPE."""
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _read_sentencepiece(path: Path) -> tuple[Tokenizer, str]:
    """A sentencepiece BPE with byte fallback, and a template."""
    # Read here, for what cannot be read is no broken file.
    model = SentencePieceProcessor(model_proto=read_whole(path))
    tokenizer = make_sentencepiece(
        [model.id_to_piece(i) for i in range(model.vocab_size())],
        [model.get_score(i) for i in range(model.vocab_size())],
        {
            i
            for i in range(model.vocab_size())
            if model.is_control(i) or model.is_unknown(i)
        },
        {i for i in range(model.vocab_size()) if model.is_byte(i)},
        space_before="all",
    )
    version = _version(path) or _guess_version(tokenizer)
    return tokenizer, chat_template(version, (), sentencepiece=True)


def _guess_version(tokenizer: Tokenizer) -> int:
    if tokenizer.token_to_id("[INST]") is None:
        return 1
    return 3 if tokenizer.token_to_id("[SYSTEM_PROMPT]") is None else 7


def _version(path: Path) -> int:
    """The 7 of ``tokenizer.model.v7`` or ``.v7m1``; 0 where the name says none."""
    match = re.search(r"\.v(\d+)(m\d+)?$", path.name)
    return int(match[1]) if match else 0
