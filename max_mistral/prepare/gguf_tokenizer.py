"""The tokenizer inside a GGUF file, as Hugging Face files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, processors

from ..errors import UserError
from ..weights.gguf_file import GGUFCheckpoint
from .bpe import make_byte_level, make_sentencepiece
from .mistral_tokenizer import TEKKEN_PATTERN, tekken_cuts

# How text is cut before BPE, by ``tokenizer.ggml.pre``; llama.cpp
# ``src/llama-vocab.cpp`` has the expressions.
PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "tekken": tekken_cuts(TEKKEN_PATTERN),
}

# ``tokenizer.ggml.token_type``
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6


def write_tokenizer(checkpoint: GGUFCheckpoint, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        UserError: (a ``ValueError``) if the file's tokenizer is neither
            sentencepiece's nor of a kind in :data:`PRE_TOKENIZERS`.
    """
    kind = checkpoint.require("tokenizer.ggml.model")
    pre = checkpoint.get("tokenizer.ggml.pre")
    if kind == "llama":
        tokenizer = _sentencepiece(checkpoint)
    elif kind == "gpt2" and pre in PRE_TOKENIZERS:
        tokenizer = _byte_level(checkpoint, pre)
    else:
        raise UserError(
            f"{checkpoint.path} has a tokenizer of kind {kind!r}/{pre!r}; "
            "max_mistral builds 'llama', and 'gpt2' with "
            f"{' and '.join(map(repr, PRE_TOKENIZERS))}."
        )
    tokens: list[str] = checkpoint.require("tokenizer.ggml.tokens")
    # Whether the file says so or not, sentencepiece and tekken begin with <s>.
    adds_bos = checkpoint.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or pre == "tekken"
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.require(
            f"{checkpoint.architecture}.context_length"
        ),
        "clean_up_tokenization_spaces": False,
    }
    for role, key in {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }.items():
        token_id = checkpoint.get(f"tokenizer.ggml.{key}")
        if token_id is not None:
            config[role] = tokens[token_id]
    if adds_bos and "bos_token" in config:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = checkpoint.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _byte_level(checkpoint: GGUFCheckpoint, pre: str) -> Tokenizer:
    tokens: list[str] = checkpoint.require("tokenizer.ggml.tokens")
    merges = [
        tuple(merge.split(" ", 1))
        for merge in checkpoint.require("tokenizer.ggml.merges")
    ]
    return make_byte_level(
        {token: i for i, token in enumerate(tokens)},
        merges,
        PRE_TOKENIZERS[pre],
        [tokens[i] for i in _of_type(checkpoint, _CONTROL)],
        whole_words=pre == "tekken",
    )


def _sentencepiece(checkpoint: GGUFCheckpoint) -> Tokenizer:
    return make_sentencepiece(
        checkpoint.require("tokenizer.ggml.tokens"),
        checkpoint.require("tokenizer.ggml.scores"),
        _of_type(checkpoint, _CONTROL, _UNKNOWN),
        _of_type(checkpoint, _BYTE),
        # The template in the file is Hugging Face's.
        space_before_all=False,
    )


def _of_type(checkpoint: GGUFCheckpoint, *types: int) -> list[int]:
    found = checkpoint.require("tokenizer.ggml.token_type")
    return [i for i, kind in enumerate(found) if kind in types]
