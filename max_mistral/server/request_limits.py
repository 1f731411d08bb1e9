"""What a client may ask for, checked before it reaches a kernel or a template.

Whatever is wrong raises MAX's ``InputError``, which its routes answer with a
400 and the sentence.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2.defaults import DEFAULT_NAMESPACE
from max.pipelines.context import SamplingParams
from max.pipelines.context.exceptions import InputError
from transformers import PreTrainedTokenizerBase

from ..unicode import is_unicode

# What a template may be asked to repeat or to count up to.
LARGEST_OPTION = 1_000_000
LONGEST_OPTION = 4096

# MAX looks for each stop string in a text of eight times the longest at each token.
MOST_STOPS = 64
LONGEST_STOPS = 4096

# MAX adds the first two to every request that speaks of reasoning, whatever the
# template.
_REASONING = {"enable_thinking", "thinking", "reasoning_effort"}
_SWITCHES = {"add_generation_prompt", "continue_final_message"}
# What transformers gives a template, or takes for itself; MAX's functions take
# their own arguments beside the options.
_RESERVED = (
    set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    | {"messages", "conversations", "prompt", "raise_exception", "strftime_now", "fn"}
    | set(DEFAULT_NAMESPACE)
) - _SWITCHES

_FLOATS = (
    *("temperature", "thinking_temperature", "top_p", "min_p"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)


def check_token_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises ``InputError`` naming the first id that the model does not have."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"token id {token} at position {position} is not in the model's "
                f"vocabulary; ids are 0 to {vocab_size - 1}."
            )


def bounded_sampling(
    params: SamplingParams,
    vocab_size: int,
    max_length: int | None,
    unreachable: Collection[int] = (),
) -> SamplingParams:
    """Returns ``params`` with nothing in it that costs memory or overflows.

    A ``top_k`` of all tokens or more is MAX's -1, no limit; MAX's sampler
    takes memory for as many as it says, at 2^63 - 1 it ends the process.

    Args:
        params: What the client asks for.
        vocab_size: How many tokens the model has.
        max_length: The longest sequence in tokens, if there is one.
        unreachable: The checkpoint's own stop ids that the model cannot emit.

    Raises:
        InputError: (a ``ValueError``) if a number is NaN or infinite, a stop id
            is not in the vocabulary, or a stop string is empty, too long or no Unicode.
    """
    for name in _FLOATS:
        value = getattr(params, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} is {value}; it must be a finite number.")
    stops = [i for i in params.stop_token_ids or () if i not in unreachable]
    check_token_ids(stops, vocab_size)
    _check_stop_strings(params.stop or [])
    longest = params.max_new_tokens
    if longest is not None and max_length is not None:
        longest = min(longest, max_length)
    return replace(
        params,
        top_k=-1 if params.top_k >= vocab_size else params.top_k,
        stop_token_ids=stops or None,
        max_new_tokens=longest,
        # MAX uses the lower 64 bits, and cannot send more to its worker.
        seed=params.seed & 0xFFFF_FFFF_FFFF_FFFF,
    )


def _check_stop_strings(stops: Sequence[str]) -> None:
    if "" in stops:
        raise InputError("stop has an empty text; give one character or more.")
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > LONGEST_STOPS:
        raise InputError(
            f"stop has {len(stops)} texts of {sum(map(len, stops))} characters in all, "
            f"but may have {MOST_STOPS} texts of {LONGEST_STOPS} characters."
        )
    if not all(map(is_unicode, stops)):
        raise InputError(
            "stop has an invalid Unicode character (a lone surrogate such as \\ud800), "
            "which no answer has; leave it out."
        )


def check_template_names(options: Mapping[str, Any]) -> None:
    """Raises ``InputError`` if an option would replace what is not the client's."""
    for name in options:
        if name in _RESERVED or not name.isidentifier():
            raise InputError(
                f"chat template option {name[:64]!r} is not for clients to set."
            )


def check_template_options(
    options: Mapping[str, Any], template: str, special: Collection[str]
) -> None:
    """Raises ``InputError`` unless a client may set these in the template.

    Args:
        options: A request's ``chat_template_kwargs``.
        template: The text of the template that will be rendered.
        special: Names of the tokenizer's special tokens, as ``bos_token``.
    """
    check_template_names(options)
    effort = options.get("reasoning_effort")
    reasons = any(_reads(name, template) for name in _REASONING)
    for name in ("enable_thinking", "thinking"):
        if options.get(name) and effort in (None, "none") and not reasons:
            raise InputError(
                "thinking is asked for, but this model's chat template has none; leave "
                "thinking, reasoning and enable_thinking out."
            )
    if effort not in (None, "none") and not reasons:
        said = repr(str(effort)[:64])
        raise InputError(
            f"reasoning_effort is {said}, but this model's chat template has none; "
            "leave it out."
        )
    for name, value in options.items():
        said = repr(name[:64])
        if name in _SWITCHES:
            if not isinstance(value, bool):
                raise InputError(f"chat template option {said} must be true or false.")
        elif name in special:
            raise InputError(f"chat template option {said} is not for clients to set.")
        elif name not in _REASONING and not _speaks_of(name, template):
            raise InputError(f"this model's chat template has no option {said}.")
        elif not _is_small(value):
            raise InputError(
                f"chat template option {said} must be a text of at most "
                f"{LONGEST_OPTION} characters, a number of at most "
                f"{LARGEST_OPTION}, true, false or null."
            )


def asked_effort(options: Mapping[str, Any]) -> str | None:
    """Returns the effort that a request asks for: ``high`` or ``none`` by a switch.

    MAX makes both ``enable_thinking`` and ``thinking`` of a request's ``thinking`` or
    ``reasoning.enabled``.
    """
    effort: str | None = options.get("reasoning_effort")
    thinks = options.get("enable_thinking", options.get("thinking"))
    if thinks is None:
        return effort
    if not thinks:
        return "none"
    return "high" if effort in (None, "none") else effort


def with_effort(options: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Returns options with an effort, if that is the template's switch for thinking.

    Args:
        options: A request's ``chat_template_kwargs``.
        template: The text of the template that will be rendered.
    """
    switches = ("enable_thinking", "thinking")
    by_effort = _reads("reasoning_effort", template) and not any(
        _reads(name, template) for name in switches
    )
    effort = asked_effort(options)
    if not by_effort or effort is None:
        return dict(options)
    return {**options, "reasoning_effort": effort}


def _speaks_of(name: str, template: str) -> bool:
    return re.search(rf"\b{name}\b", template) is not None


def _reads(name: str, template: str) -> bool:
    """Whether a variable is in the template's code."""
    return name in _variables(template)


@functools.lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    """The names in a template's code.

    Templates also say ``thinking`` in comments, in literals (a part's type) and as a
    message's field.
    """
    template = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    code = " ".join(re.findall(r"\{[{%].*?[%}]\}", template, flags=re.DOTALL))
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", code)
    return frozenset(re.findall(r"(?<![.\w])[^\W\d]\w*", code))


def _is_small(value: object) -> bool:
    match value:
        case None | bool():
            return True
        case int() | float():
            return abs(value) <= LARGEST_OPTION  # False for NaN
        case str():
            return len(value) <= LONGEST_OPTION
    return False
