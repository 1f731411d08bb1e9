"""Fields of Mistral's own API that OpenAI's has by another name, or not at all.

Mistral's clients send them: ``mistralai``, LangChain's ``ChatMistralAI``, LiteLLM,
the Vercel AI SDK. Source: https://docs.mistral.ai/api (chat completions).
"""

from __future__ import annotations

from typing import Any

from max.pipelines.context.exceptions import InputError

from ..errors import shown

FIELDS = ("random_seed", "safe_prompt", "prompt_mode")


def as_openai(body: dict[str, Any]) -> dict[str, Any]:
    """Returns a request's JSON with OpenAI's names for what Mistral calls otherwise.

    ``random_seed`` is ``seed``, and ``tool_choice`` "any" is "required". Of
    ``safe_prompt`` and ``prompt_mode`` what asks for nothing is left out.

    Args:
        body: Of a chat or a completion.

    Raises:
        InputError: (a ``ValueError``) if a field asks for what is not there, or
            contradicts OpenAI's.
    """
    found = dict(body)
    seed = found.pop("random_seed", None)
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InputError(f"random_seed is {shown(seed)}, not an integer.")
        if found.get("seed") not in (None, seed):
            raise InputError(
                f"seed is {shown(found['seed'])} and random_seed is {seed}; give one "
                "of them."
            )
        found["seed"] = seed
    if found.get("tool_choice") == "any":
        found["tool_choice"] = "required"
    safe = found.pop("safe_prompt", None)
    if safe is not None and safe is not False:
        raise InputError(
            f"safe_prompt is {shown(safe)}, but no safety prompt is added here; write "
            "one into the system message."
        )
    mode = found.pop("prompt_mode", None)
    if mode is not None:
        raise InputError(
            f"prompt_mode is {shown(mode)}, but prompts have one mode here; leave it "
            "out. A model that thinks does so by its own system prompt."
        )
    return found
