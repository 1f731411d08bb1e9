"""Checkpoints with a made-up byte-level vocabulary of each tokenizer version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from max_mistral.prepare.mistral_tokenizer import write_tokenizer
from workbench.checkpoints import BASE, write_checkpoint
from workbench.tokenizers import tokenizer_file

BASIC = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]"]
BASIC += ["[/SYSTEM_PROMPT]"]
V3 = [*BASIC, "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
V3 += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
V11 = [*V3, "[CALL_ID]", "[ARGS]"]
V13 = [*V11, "[THINK]", "[/THINK]"]
# Control tokens, by tokenizer version.
VOCABULARIES = {"v3": V3, "v11": V11, "v13": V13, "none": BASIC}

TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}
[TOOL_RESULTS]{{ m.tool_call_id }}:{{ m.content }}[/TOOL_RESULTS]
{%- elif m.role == 'system' -%}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- else -%}
{%- if m.reasoning_content -%}[THINK]{{ m.reasoning_content }}[/THINK]{%- endif -%}
{{- m.content -}}
{%- for c in m.tool_calls or [] -%}
[TOOL_CALLS]{{ c.function.name }}#{{ c.id }}{{ c.function.arguments | tojson }}
{%- endfor -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""
PLAIN_TEMPLATE = """\
{%- for m in messages -%}<{{ m.role }}>{{ m.content }}
{% endfor -%}<assistant>"""


LONG = BASE | {"vocab_size": 320, "max_position_embeddings": 8192}


def write_vocabulary(folder: Path, version: str, config: dict[str, Any] = LONG) -> Path:
    """Writes a checkpoint whose tokenizer has the control tokens of a version."""
    special = VOCABULARIES[version]
    write_checkpoint(folder, config)
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"<filler_{i}>" for i in range(len(pieces), 320)]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=8192,
    )
    fast.chat_template = PLAIN_TEMPLATE if version == "none" else TEMPLATE
    fast.save_pretrained(folder)
    return folder


def write_real(folder: Path, kind: str) -> Path:
    """Writes a checkpoint that has the vocabulary of one of Mistral's own files."""
    write_vocabulary(folder, "v3")
    size = write_tokenizer(tokenizer_file(kind), folder)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": size}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
