"""``tekken.json`` and ``tokenizer.model*`` as Hugging Face files.

Both are byte-pair encodings that Hugging Face's ``tokenizers`` can run. What
they give is held against sentencepiece, tiktoken and mistral-common in
``tests/unit/test_mistral_tokenizer.py``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sentencepiece import SentencePieceProcessor
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tqdm import tqdm

from ..errors import UserError
from .chat_template import chat_template

Piece = TypeVar("Piece", str, bytes)

# How text is cut before BPE in every tekken.json so far.
TEKKEN_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

_UNK, _BOS, _EOS = "<unk>", "<s>", "</s>"

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
    if tekken.exists():
        return tekken
    found = sorted(folder.glob("tokenizer.model*"), key=lambda path: _version(path))
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
        tokenizer, version = read(path)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a complete tokenizer ({error}). Fetch it again."
        ) from error
    for token, expected in ((_UNK, 0), (_BOS, 1), (_EOS, 2)):
        if tokenizer.token_to_id(token) != expected:
            raise UserError(
                f"{path} has {token} at {tokenizer.token_to_id(token)}; the "
                f"tokenizers of Mistral have it at {expected}."
            )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _UNK,
        "bos_token": _BOS,
        "eos_token": _EOS,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(version),
    }
    if tokenizer.token_to_id("<pad>") is not None:
        config["pad_token"] = "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizer.get_vocab_size()


def _read_tekken(path: Path) -> tuple[Tokenizer, int]:
    """The byte-level BPE of tiktoken behind a block of special tokens."""
    file = json.loads(path.read_text())
    config = file["config"]
    listed = file.get("special_tokens")
    special = [token["token_str"] for token in listed] if listed else _TEKKEN_SPECIAL
    count = config["default_num_special_tokens"]
    special = special + [f"<SPECIAL_{i}>" for i in range(len(special), count)]
    size = config["default_vocab_size"] - count
    ranks = {
        base64.b64decode(token["token_bytes"]): token["rank"]
        for token in file["vocab"][:size]
    }
    if len(ranks) != size:
        raise ValueError(f"{len(ranks)} tokens, not {size}")
    spell = _byte_spelling()

    def spelled(token: bytes) -> str:
        return "".join(spell[byte] for byte in token)

    vocab = {token: i for i, token in enumerate(special)}
    vocab |= {spelled(token): count + rank for token, rank in ranks.items()}
    merges = [(spelled(left), spelled(right)) for left, right in _merges(ranks)]
    tokenizer = make_byte_level(
        vocab, merges, tekken_cuts(config["pattern"]), special, whole_words=True
    )
    return tokenizer, int(config["version"].removeprefix("v"))


def tekken_cuts(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    """Returns how tekken cuts text before BPE."""
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def make_byte_level(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    cuts: Sequence[pre_tokenizers.PreTokenizer],
    special: Sequence[str],
    *,
    whole_words: bool,
) -> Tokenizer:
    """Returns a byte-level BPE.

    Args:
        vocab: The ids of the pieces, bytes spelled as ``ByteLevel`` does.
        merges: Pairs of pieces, the first to merge first.
        cuts: How text is cut before.
        special: The control tokens.
        whole_words: Whether a word that is a piece is looked up before any
            merge, as tiktoken does and so tekken.
    """
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, special)
    return tokenizer


def _read_sentencepiece(path: Path) -> tuple[Tokenizer, int]:
    """A sentencepiece BPE with byte fallback."""
    model = SentencePieceProcessor(model_file=str(path))
    tokenizer = make_sentencepiece(
        [model.id_to_piece(i) for i in range(model.vocab_size())],
        [model.get_score(i) for i in range(model.vocab_size())],
        {
            i
            for i in range(model.vocab_size())
            if model.is_control(i) or model.is_unknown(i)
        },
        {i for i in range(model.vocab_size()) if model.is_byte(i)},
        space_before_all=True,
    )
    return tokenizer, _version(path) or _guess_version(tokenizer)


def _guess_version(tokenizer: Tokenizer) -> int:
    if tokenizer.token_to_id("[INST]") is None:
        return 1
    return 3 if tokenizer.token_to_id("[SYSTEM_PROMPT]") is None else 7


def make_sentencepiece(
    pieces: Sequence[str],
    scores: Sequence[float],
    special: Collection[int],
    byte_pieces: Collection[int],
    *,
    space_before_all: bool,
) -> Tokenizer:
    """Returns the BPE of sentencepiece, with byte fallback.

    Args:
        pieces: The vocabulary, in the order of its ids.
        scores: Of the pieces; the highest merge first.
        special: The ids of control tokens and of the unknown one.
        byte_pieces: The ids of ``<0x00>`` to ``<0xFF>``.
        space_before_all: Whether a space goes in front of each stretch of text
            between control tokens, as in mistral-common, or of the first only,
            as in Hugging Face's tokenizers and templates.
    """
    # Merged pieces have a negative score; those with none stand by themselves.
    merged = {
        piece: -scores[i]
        for i, piece in enumerate(pieces)
        if scores[i] < 0 and i not in byte_pieces and i not in special
    }
    whole = [
        piece
        for i, piece in enumerate(pieces)
        if i not in byte_pieces and i not in special and piece not in merged
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab, _merges(merged), unk_token=_UNK, fuse_unk=True, byte_fallback=True
        )
    )
    if space_before_all:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first", split=False
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_special(tokenizer, [pieces[i] for i in sorted(special)])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in whole])
    return tokenizer


def _version(path: Path) -> int:
    """The 7 of ``tokenizer.model.v7`` or ``.v7m1``; 0 where the name says none."""
    match = re.search(r"\.v(\d+)(m\d+)?$", path.name)
    return int(match[1]) if match else 0


def _merges(ranks: dict[Piece, Any]) -> list[tuple[Piece, Piece]]:
    """Returns every pair of pieces that makes a piece, the lowest rank first.

    Runs of spaces share one rank in sentencepiece, which then merges from left
    to right: a longer left piece goes first.
    """
    found = []
    for piece, rank in tqdm(
        ranks.items(), desc="Converting tokenizer", unit=" tokens", disable=None
    ):
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in ranks and right in ranks:
                found.append((rank, -i, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _byte_spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte, as ``ByteLevel`` has them."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    assert set(spelling.values()) == set(level.alphabet())
    return spelling


def _add_special(tokenizer: Tokenizer, special: Sequence[str]) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
