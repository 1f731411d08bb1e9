"""The chat template of a Mistral tokenizer that comes without one."""

from __future__ import annotations

import re

# What mistral-common's ``instruct.py`` writes, by tokenizer version. ``system``
# is where version 1 (first) and 2, 3 (last) put the system prompt; from 7 on
# it is a message of its own.
_TEMPLATE = """\
{%- if tools %}{{ raise_exception('This chat template has no tools. Give one \
that has with --chat-template.') }}{% endif -%}
{%- set ns = namespace(system='', at=-1) -%}
{%- for m in messages if m.role == 'user' -%}
  {%- set ns.at = loop.index0 if '@SYSTEM@' == 'last' else 0 -%}
{%- endfor -%}
{%- set users = namespace(seen=0) -%}
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}
    {%- if '@SYSTEM@' == 'own' -%}
      {{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' -}}
    {%- else -%}
      {%- set ns.system = ns.system + m.content + '\\n\\n' -%}
    {%- endif -%}
  {%- elif m.role == 'user' -%}
    {{- '@OPEN@' -}}
    {%- if users.seen == ns.at %}{{ ns.system }}{% endif -%}
    {{- m.content + '@CLOSE@' -}}
    {%- set users.seen = users.seen + 1 -%}
  {%- elif m.role == 'assistant' -%}
    {{- '@ANSWER@' + m.content@STRIP@ + eos_token -}}
  {%- else -%}
    {{- raise_exception('This chat template has no role ' + m.role + '.') -}}
  {%- endif -%}
{%- endfor -%}
"""


def chat_template(version: int) -> str:
    """Returns the Jinja template of a tokenizer version: text, no tools."""
    # Version 1 has no control tokens: spaces keep the markers apart.
    space = " " if version == 1 else ""
    system = "first" if version == 1 else "last" if version < 7 else "own"
    parts = {
        "@SYSTEM@": system,
        "@OPEN@": "[INST]" + space,
        "@CLOSE@": space + "[/INST]",
        "@ANSWER@": space,
        "@STRIP@": "" if version == 1 else ".rstrip(' ')",
    }
    return re.sub("@[A-Z]+@", lambda match: parts[match[0]], _TEMPLATE)
