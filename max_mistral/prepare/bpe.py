"""Byte-pair encodings as Hugging Face's ``tokenizers`` run them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..errors import UserError, shown
from ..progress import progress

Piece = TypeVar("Piece", str, bytes)

UNK = "<unk>"

# Characters or bytes of a piece, for the work grows with their square; no
# tokenizer of the family has one of more than 400.
_LONGEST = 1024
# Merges, for each piece and in all: those in use have two or three for each.
_MERGES_EACH, _MERGES = 16, 2**16


def make_byte_level(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    cuts: Sequence[pre_tokenizers.PreTokenizer],
    special: Sequence[str],
    user_defined: Sequence[str] = (),
    *,
    whole_words: bool,
) -> Tokenizer:
    """Returns a byte-level BPE.

    Args:
        vocab: The ids of the pieces, bytes spelled as ``ByteLevel`` does.
        merges: Pairs of pieces, the first to merge first.
        cuts: How text is cut before.
        special: The control tokens.
        user_defined: Tokens of plain text, which are never cut.
        whole_words: Whether a word that is a piece is looked up before any
            merge, as tiktoken does and so tekken.

    Raises:
        UserError: (a ``ValueError``) if a merge is not of two pieces to one.
    """
    for left, right in merges:
        if not {left, right, left + right} <= vocab.keys():
            raise UserError(
                f"The tokenizer merges {shown(left)} and {shown(right)}, which, or "
                "what they make, are not among its tokens. Fetch it again."
            )
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, special, user_defined)
    return tokenizer


def make_sentencepiece(
    pieces: Sequence[str],
    scores: Sequence[float],
    special: Collection[int],
    byte_pieces: Collection[int],
    user_defined: Collection[int] = (),
    *,
    space_before: Literal["all", "missing", "none"],
) -> Tokenizer:
    """Returns the BPE of sentencepiece, with byte fallback.

    Args:
        pieces: The vocabulary, in the order of its ids.
        scores: Of the pieces; the highest merge first.
        special: The ids of control tokens and of the unknown one.
        byte_pieces: The ids of ``<0x00>`` to ``<0xFF>``.
        user_defined: The ids of pieces that are never cut, whatever their score.
        space_before: Whether a space goes in front of each stretch of text
            between control and user-defined tokens, as in mistral-common's
            chats, though sentencepiece puts none behind a user-defined one; of
            each that begins with none, as Hugging Face's templates often write
            it themselves; or of none.

    Raises:
        UserError: (a ``ValueError``) if there is no unknown piece, a piece is
            there twice or too long, or a score is no number.
    """
    special, byte_pieces = set(special), set(byte_pieces)
    user_defined = set(user_defined)
    if UNK not in pieces or len(set(pieces)) != len(pieces):
        raise UserError(
            f"The tokenizer has {len(pieces)} pieces, {len(set(pieces))} that differ"
            f"{'' if UNK in pieces else ', and no ' + UNK}. Fetch it again."
        )
    if not all(map(math.isfinite, scores)):
        raise UserError("The tokenizer has scores that are no numbers. Fetch it again.")
    # With the score 0 too: the first merge has it, and pieces that extend a vocabulary,
    # though sentencepiece merges those from left to right, and BPE in one order.
    set_apart = special | byte_pieces | user_defined
    ranks = {p: -scores[i] for i, p in enumerate(pieces) if i not in set_apart}
    merges = find_merges(ranks)
    # Neither sentencepiece's library nor gguf's converter tells which pieces of a
    # tokenizer.model are user-defined, such as v3's [REFERENCE_DOC_0]: they have the
    # score 0 too, and no two pieces make them.
    alone = ranks.keys() - {left + right for left, right in merges}
    whole = [
        piece
        for i, piece in enumerate(pieces)
        if i in user_defined or (piece in alone and len(piece) > 1 and scores[i] >= 0)
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)
    )
    if space_before == "all":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="always" if space_before == "missing" else "never",
            split=False,
        )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_before != "none":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    _add_tokens(tokenizer, [pieces[i] for i in sorted(special)], whole)
    return tokenizer


def find_merges(ranks: dict[Piece, Any]) -> list[tuple[Piece, Piece]]:
    """Returns every pair of pieces that makes a piece, the lowest rank first.

    Runs of spaces share one rank in sentencepiece, which then merges from left
    to right: a longer left piece goes first.

    Raises:
        UserError: (a ``ValueError``) if a piece is longer than any in use, or they
            are made of each other in more ways.
    """
    longest = max(ranks, key=len, default="")
    if len(longest) > _LONGEST:
        raise UserError(
            f"The tokenizer has a piece of {len(longest)}, {shown(longest)}; expected "
            f"at most {_LONGEST}. Fetch it again."
        )
    most = _MERGES_EACH * len(ranks) + _MERGES
    found: list[tuple[Any, int, Piece, Piece]] = []
    for piece, rank in progress(ranks.items(), "Converting tokenizer", "tokens"):
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in ranks and right in ranks:
                found.append((rank, -i, left, right))
        if len(found) > most:
            raise UserError(
                f"The tokenizer's {len(ranks)} pieces are made of each other in more "
                f"than {most} ways, as no tokenizer's in use are. Fetch it again."
            )
    found.sort()
    return [(left, right) for *_, left, right in found]


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes ``tokenizer.json``.

    Raises:
        OSError: If it cannot be written; ``Tokenizer.save`` has no such kind.
    """
    text = tokenizer.to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def add_bos(tokenizer: Tokenizer, bos: str) -> None:
    """Lets every text begin with the token ``bos``.

    Raises:
        UserError: (a ``ValueError``) if it cannot be told from the template's
            own signs.
    """
    if bos.startswith("$") or ":" in bos or not bos:
        raise UserError(
            f"The tokenizer's first token is {shown(bos)}; expected one such as '<s>', "
            "without $ and colons."
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def byte_spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte, as ``ByteLevel`` has them."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    assert set(spelling.values()) == set(level.alphabet())
    return spelling


def _add_tokens(
    tokenizer: Tokenizer, special: Sequence[str], whole: Sequence[str]
) -> None:
    """Lets text be cut at tokens of its vocabulary before anything else."""
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
