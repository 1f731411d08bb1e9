"""The chat template of a Mistral tokenizer that comes without one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mistral_common.integrations.chat_templates.chat_templates import (
    generate_chat_template,
)
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from ..errors import UserError

_NO_TOOLS = """\
{%- if tools %}{{ raise_exception('This chat template has no tools. Give one \
that has with --chat-template.') }}{% endif -%}
"""

# Clients, and MAX, write a tool with other keys and in another order than
# mistral-common's own prompts have it.
_TOOLS = """\
{%- if tools %}
  {%- set as_trained = namespace(tools=[]) %}
  {%- for tool in tools %}
    {%- set f = tool['function'] %}
    {%- set as_trained.tools = as_trained.tools + [{'type': 'function', 'function': \
{'name': f['name'], 'description': f['description'] or '', \
'parameters': f['parameters'] or {}}}] %}
  {%- endfor %}
  {%- set tools = as_trained.tools %}
{%- endif %}
"""

# From version 2 on mistral-common strips an answer, its templates do not.
_ANSWER = "content=message['content'], context_name='assistant message contents'"
_STRIPPED = _ANSWER.replace(
    "message['content']",
    "message['content'].rstrip(' ') if message['content'] is string "
    "else message['content']",
)


def chat_template(
    version: int,
    special: Sequence[str],
    *,
    sentencepiece: bool,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Returns the Jinja template of a tokenizer, as mistral-common writes it.

    Args:
        version: The tokenizer's version.
        special: The texts of its control tokens.
        sentencepiece: Whether it is a sentencepiece model.
        settings: ``model_settings_builder`` of a ``tekken.json``, if it has one.

    Raises:
        UserError: (a ``ValueError``) if mistral-common knows no such tokenizer.
    """
    try:
        settings = {k: v for k, v in (settings or {}).items() if v is not None}
        effort = settings.get("reasoning_effort", {})
        template = generate_chat_template(
            spm=sentencepiece,
            tokenizer_version=TokenizerVersion(f"v{version}"),
            image_support=False,
            audio_support=False,
            thinking_support=version >= 13 and {"[THINK]", "[/THINK]"} <= {*special},
            default_system_prompt=None,
            plain_thinking_support=False,
            use_special_token_variables=True,
            model_settings_fields=frozenset(settings) or None,
            reasoning_effort_values=tuple(effort["values"]) if effort else None,
            reasoning_effort_default=effort["default"] if effort else None,
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"mistral-common knows no tokenizer of version {version} like this "
            f"({error}). Update it, or fetch the tokenizer again."
        ) from error
    if sentencepiece:
        template = _without_first_spaces(template)
    tools = _TOOLS if version > 1 else _NO_TOOLS
    return tools + template.replace(_ANSWER, _STRIPPED)


def _without_first_spaces(template: str) -> str:
    """Leaves out the spaces after control tokens.

    mistral-common's template writes them for Hugging Face's tokenizers; ours
    puts one in front of each stretch of text, as sentencepiece does.
    """
    # Version 1 has no control tokens: there the markers are text.
    template = template.replace("' [INST] '", "'[INST] '")
    if "[AVAILABLE_TOOLS]" in template:
        template = re.sub(r"(\[/?[A-Z_]+\]) ", r"\1", template)
        template = template.replace("ns.add_space=true", "ns.add_space=false")
    return template
