"""The tokenizer inside a GGUF file, as Hugging Face files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, pre_tokenizers

from ..errors import UserError, shown
from ..fields import MOST_POSITIONS, MOST_TOKENS, Fields
from ..tekken import PATTERN
from ..weights.gguf_file import GGUFCheckpoint
from .bpe import add_bos, make_byte_level, make_sentencepiece, write
from .chat_template import chat_template
from .mistral_tokenizer import tekken_cuts

logger = logging.getLogger("max.pipelines")

# How text is cut before BPE, by ``tokenizer.ggml.pre``; llama.cpp
# ``src/llama-vocab.cpp`` has the expressions.
PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "tekken": tekken_cuts(PATTERN),
}

# ``tokenizer.ggml.token_type``
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_TEMPLATE = "tokenizer.chat_template"
# What llama.cpp's ``conversion/mistral.py`` writes there for a checkpoint in
# Mistral's own format, and the version of the tokenizer that it stands for.
_NAMED_TEMPLATES = {
    "mistral-v1": 1,
    "mistral-v3": 3,
    "mistral-v3-tekken": 3,
    "mistral-v7": 7,
    "mistral-v7-tekken": 7,
}
# Some files name only one token that ends an answer, and others do too.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


def write_tokenizer(checkpoint: GGUFCheckpoint, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        UserError: (a ``ValueError``) if the file's tokenizer is neither
            sentencepiece's nor of a kind in :data:`PRE_TOKENIZERS`, or its scores
            do not say how pieces merge.
    """
    file = checkpoint.metadata
    kind = file.string("tokenizer.ggml.model")
    pre = file.string("tokenizer.ggml.pre", default="")
    tokens: list[str] = file.items("tokenizer.ggml.tokens", str, MOST_TOKENS)
    if len(set(tokens)) != len(tokens):
        raise UserError(
            f"{checkpoint.path} has {len(tokens)} tokens, but only {len(set(tokens))} "
            "that differ. Fetch it again."
        )
    types = _read_types(file, tokens)
    # Like llama.cpp: what ends an answer is no text of it, whatever its type.
    for i in read_ends(file):
        if types[i] == _USER_DEFINED:
            types[i] = _CONTROL
    if kind == "llama":
        tokenizer = _sentencepiece(checkpoint, tokens, types)
    elif kind == "gpt2" and pre in PRE_TOKENIZERS:
        tokenizer = _byte_level(file, pre, tokens, types)
    else:
        raise UserError(
            f"{checkpoint.path} has a tokenizer of kind {kind!r}/{pre!r}; "
            "max_mistral builds 'llama', and 'gpt2' with "
            f"{' and '.join(map(repr, PRE_TOKENIZERS))}. {_own_tokenizer(checkpoint)}"
        )
    # Whether the file says so or not, sentencepiece and tekken begin with <s>.
    adds_bos = file.boolean(
        "tokenizer.ggml.add_bos_token", default=kind == "llama" or pre == "tekken"
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.integer(
            f"{checkpoint.architecture}.context_length", high=MOST_POSITIONS
        ),
        "clean_up_tokenization_spaces": False,
    }
    for role, name in {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }.items():
        key = f"tokenizer.ggml.{name}"
        if file.has(key):
            config[role] = tokens[file.integer(key, 0, len(tokens) - 1)]
    if adds_bos and "bos_token" in config:
        add_bos(tokenizer, config["bos_token"])
    write(tokenizer, folder)
    # Only embeddings go by it: a prompt does not end where an answer begins.
    if file.boolean("tokenizer.ggml.add_eos_token", default=False):
        config["add_eos_token"] = True
    template = _read_template(file, sentencepiece=kind == "llama")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def read_ends(file: Fields) -> list[int]:
    """Returns the ids of the tokens that end an answer, that of ``eos`` first.

    llama.cpp (``src/llama-vocab.cpp``, ``special_eog_ids``) finds them so too.

    Raises:
        UserError: (a ``ValueError``) if ``eos`` is missing, or one is no token.
    """
    tokens = file.items("tokenizer.ggml.tokens", str, MOST_TOKENS)
    eos, *others = (f"tokenizer.ggml.{name}" for name in _ENDS)
    keys = [eos, *(key for key in others if file.has(key))]
    found = [file.integer(key, 0, len(tokens) - 1) for key in keys]
    whole = _of_type(_read_types(file, tokens), _CONTROL, _USER_DEFINED)
    found += [i for i in whole if tokens[i] in _END_TEXTS]
    return list(dict.fromkeys(found))


def _read_types(file: Fields, tokens: list[str]) -> list[int]:
    types = file.items("tokenizer.ggml.token_type", int)
    _check_length(file, "tokenizer.ggml.token_type", types, tokens)
    return list(types)


def _read_template(file: Fields, *, sentencepiece: bool) -> str | None:
    """The Jinja template; ``None`` where there is none."""
    found = file.string(_TEMPLATE, default="")
    if found in _NAMED_TEMPLATES:
        return chat_template(_NAMED_TEMPLATES[found], (), sentencepiece=sentencepiece)
    # Without a brace every chat would be the same prompt.
    if "{" not in found:
        if found:
            logger.warning(
                "%s has %s = %s, which is no Jinja template and is left out. For chats "
                "give one with --chat-template.",
                file.source,
                _TEMPLATE,
                shown(found),
            )
        return None
    return found


def _byte_level(
    file: Fields, pre: str, tokens: list[str], types: list[int]
) -> Tokenizer:
    merges = [
        tuple(merge.split(" ", 1)) for merge in file.items("tokenizer.ggml.merges", str)
    ]
    for i, merge in enumerate(merges):
        if len(merge) != 2:
            key = f"tokenizer.ggml.merges[{i}]"
            file.refuse(key, merge[0], "two tokens with a space between")
    return make_byte_level(
        {token: i for i, token in enumerate(tokens)},
        merges,
        PRE_TOKENIZERS[pre],
        [tokens[i] for i in _of_type(types, _CONTROL)],
        [tokens[i] for i in _of_type(types, _USER_DEFINED)],
        whole_words=pre == "tekken",
    )


def _sentencepiece(
    checkpoint: GGUFCheckpoint, tokens: list[str], types: list[int]
) -> Tokenizer:
    file = checkpoint.metadata
    key = "tokenizer.ggml.scores"
    scores = file.items(key, float)
    _check_length(file, key, scores, tokens)
    merged = [scores[i] for i in _of_type(types, _NORMAL) if len(tokens[i]) > 1]
    # As gguf's converter writes them where it has no tokenizer.model.
    if len(merged) > 1 and len(set(merged)) == 1:
        file.refuse(
            f"{key} of all {len(merged)} pieces of text",
            merged[0],
            "scores that differ, by which pieces merge",
            _own_tokenizer(checkpoint),
        )
    space_before: Literal["all", "missing", "none"] = "missing"
    if not file.boolean("tokenizer.ggml.add_space_prefix", default=True):
        space_before = "none"
    elif file.string(_TEMPLATE, default="") in _NAMED_TEMPLATES:
        # As with Mistral's own tokenizer.model: the template writes none.
        space_before = "all"
    return make_sentencepiece(
        tokens,
        scores,
        _of_type(types, _CONTROL, _UNKNOWN),
        _of_type(types, _BYTE),
        _of_type(types, _USER_DEFINED),
        space_before=space_before,
    )


def _own_tokenizer(checkpoint: GGUFCheckpoint) -> str:
    """What to do where the file's own tokenizer is of no use."""
    return (
        "Put config.json and the tokenizer.json of the model's own checkpoint in a "
        f"folder, and start with --model FOLDER --weight-path {checkpoint.path}."
    )


def _of_type(types: list[int], *wanted: int) -> list[int]:
    return [i for i, kind in enumerate(types) if kind in wanted]


def _check_length(file: Fields, key: str, found: list[Any], tokens: list[str]) -> None:
    if len(found) != len(tokens):
        file.refuse(f"{key} of length", len(found), f"{len(tokens)}, one a token")
