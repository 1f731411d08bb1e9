"""Models beside Mistral's dense ones, refused by the name they are known by.

Sources: ``model_type`` of ``transformers/models/*``; vLLM's
``transformers_utils/configs/mistral.py`` for ``params.json``; llama.cpp's
``gguf-py/gguf/constants.py`` for GGUF files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import UserError, shown

_LATENT = "with latent attention (MLA)"
_AUDIO = "Voxtral, which hears audio"
_IMAGES = "LLaVA or Pixtral, a model of images"
_TOWER = "the image or audio tower of a model (mmproj), without its text model"

# By ``model_type`` of config.json and params.json, and ``general.architecture``
# of a GGUF file.
_NAMES = {
    "mistral4": f"Mistral Small 4, a mixture of experts {_LATENT}",
    "mistral_large_3": f"Mistral Large 3, a mixture of experts {_LATENT}",
    **dict.fromkeys(
        ("deepseek2", "deepseek_v2", "deepseek_v3"),
        f"DeepSeek or Mistral Large 3, a mixture of experts {_LATENT}",
    ),
    "mixtral": "Mixtral, a mixture of experts",
    **dict.fromkeys(("voxtral", "voxtral_realtime"), _AUDIO),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "pixtral"), _IMAGES),
    **dict.fromkeys(("mamba", "mamba2"), "Mamba-Codestral, which has no attention"),
    "clip": _TOWER,
    "mmproj": _TOWER,
}

# By ``architectures`` of config.json: a Mistral with another head.
_SCORES = "a reward model or a classifier, for whose scores MAX 26.7 has no task"
_HEADS = {
    "MistralForSequenceClassification": _SCORES,
    "MistralForTokenClassification": _SCORES,
    "MistralForQuestionAnswering": _SCORES,
}

# The keys that say so where the name does not.
_LATENT_KEYS = ("kv_lora_rank", "attention.kv_lora_rank")
_EXPERT_KEYS = (
    "num_local_experts",
    "n_routed_experts",
    "num_experts",
    "moe",
    "expert_count",
)


def refuse_other_models(
    source: str, *parts: Callable[[str], Any], kind: str = "model_type"
) -> None:
    """Raises a ``UserError`` that says which other model a checkpoint is.

    Args:
        source: What to call the file in the message.
        parts: Each returns a value of one part of the config by its key, or
            ``None``: the whole, the text tower's.
        kind: The key under which a part says what it is.
    """
    for get in parts:
        name = get(kind)
        if isinstance(name, str) and name in _NAMES:
            _refuse(source, _NAMES[name], f"{kind} = {name!r}")
        heads = get("architectures")
        for head in heads if isinstance(heads, list) else ():
            if isinstance(head, str) and head in _HEADS:
                _refuse(source, _HEADS[head], f"architectures = {shown(heads)}")
    for get in parts:
        multimodal = get("multimodal")
        if isinstance(multimodal, dict) and multimodal.get("whisper_model_args"):
            _refuse(source, _AUDIO, "multimodal.whisper_model_args")
        if get("audio_config"):
            _refuse(source, _AUDIO, "audio_config")
        latent = next(filter(get, _LATENT_KEYS), None)
        experts = next((key for key in _EXPERT_KEYS if _several(get(key))), None)
        if experts:
            what = (
                f"Mistral Large 3 or Small 4, a mixture of experts {_LATENT}"
                if latent
                else "Mixtral or another mixture of experts"
            )
            _refuse(source, what, f"{experts} = {shown(get(experts))}")
        if latent:
            _refuse(source, f"a model {_LATENT}", f"{latent} = {shown(get(latent))}")


def _several(found: Any) -> bool:
    """Whether a number of experts, or the object that has it, means a mixture."""
    if type(found) is int:
        return found > 1
    return isinstance(found, dict) and bool(found)


def _refuse(source: str, what: str, because: str) -> None:
    raise UserError(
        f"{source} is of {what} ({because}), which max_mistral does not support: it "
        "runs dense Mistral models on text."
    )
