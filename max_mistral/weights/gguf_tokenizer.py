"""The tokenizer inside a GGUF file, as Hugging Face files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..errors import UserError
from .gguf import GGUFCheckpoint

# How text is cut before BPE, by ``tokenizer.ggml.pre``; llama.cpp
# ``src/llama-vocab.cpp`` has the expressions.
PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}

# ``tokenizer.ggml.token_type``
_CONTROL = 3


def write_tokenizer(checkpoint: GGUFCheckpoint, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        UserError: (a ``ValueError``) if the file's tokenizer is of a kind that
            is not in :data:`PRE_TOKENIZERS`.
    """
    kind = checkpoint.require("tokenizer.ggml.model")
    pre = checkpoint.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{checkpoint.path} has a tokenizer of kind {kind!r}/{pre!r}; "
            "max_mistral builds 'gpt2' with "
            f"{' and '.join(map(repr, PRE_TOKENIZERS))}."
        )
    tokens: list[str] = checkpoint.require("tokenizer.ggml.tokens")
    merges = [
        tuple(merge.split(" ", 1))
        for merge in checkpoint.require("tokenizer.ggml.merges")
    ]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    types = checkpoint.require("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.require("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": checkpoint.get("tokenizer.ggml.add_bos_token", False),
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
    template = checkpoint.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
