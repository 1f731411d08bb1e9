"""A checkpoint's tokenizer as transformers loads it."""

from __future__ import annotations

import json
from typing import Any, cast

from max.pipelines.lib import PipelineConfig
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .errors import UserError
from .hf_config import text_config
from .hf_files import find_file
from .tekken import PATTERN

# What transformers 4 wrote into the tokenizer.json that it made of a tekken.json, such
# as that of Mistral Small 3.1 (``integrations/mistral.py``).
_WRONG = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def load_fast(
    model_path: str,
    revision: str | None,
    max_length: int | None,
    trust_remote_code: bool,
) -> PreTrainedTokenizerFast:
    """Returns transformers' fast tokenizer.

    MAX's grammars and its streaming need that class. AutoTokenizer takes
    another for folders with a tekken.json if mistral-common is installed. Some
    of those folders have a tokenizer.json that cuts words at the wrong places.

    Args:
        model_path: A folder or the name of a repository.
        revision: The repository's revision.
        max_length: The longest sequence in tokens.
        trust_remote_code: Whether the repository's own Python may run.

    Raises:
        UserError: (a ``ValueError``) if there is none that loads, or only one in
            Mistral's own format.
    """
    options: dict[str, Any] = {"revision": revision, "model_max_length": max_length}
    try:
        if find_file(model_path, "tekken.json", revision) is not None:
            # transformers would make one of it, whose ids are not Mistral's.
            if find_file(model_path, "tokenizer.json", revision) is None:
                raise UserError(
                    f"{model_path} has tekken.json, but no tokenizer.json. Make a "
                    "folder that has one with: max-mistral prepare FOLDER NEW_FOLDER. "
                    "max-mistral serve and generate do so by themselves."
                )
            fast = PreTrainedTokenizerFast.from_pretrained(
                model_path, fix_mistral_regex=True, **options
            )
            _mend_cuts(fast)
            return fast
        loaded = AutoTokenizer.from_pretrained(
            model_path, trust_remote_code=trust_remote_code, **options
        )
        return cast(PreTrainedTokenizerFast, loaded)
    except UserError:
        raise
    # transformers and tokenizers raise any kind, even bare Exception.
    except Exception as error:
        raise UserError(
            f"transformers cannot load a tokenizer from {model_path} ({error}). "
            "Give a checkpoint with its tokenizer.json, or make one with "
            "python -m max_mistral.prepare."
        ) from error


def _mend_cuts(fast: PreTrainedTokenizerFast) -> None:
    """Puts tekken's expression in the place of the one known to be wrong.

    ``fix_mistral_regex`` does it too, but not where transformers 5 saved the config
    or the Hub does not say that the model is of Mistral's family.
    """
    cuts = fast.backend_tokenizer.pre_tokenizer
    if not isinstance(cuts, pre_tokenizers.Sequence):
        return
    # What a tokenizer.json has of them.
    first = json.loads(cuts.__getstate__())["pretokenizers"][:1]
    if [each.get("pattern") for each in first] == [{"Regex": _WRONG}]:
        cuts[0] = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")


def vocab_size(
    delegate: PreTrainedTokenizerFast,
    pipeline_config: PipelineConfig | None,
    model_path: str,
) -> int:
    """Returns how many tokens the model has, at least as many as the tokenizer.

    Raises:
        UserError: (a ``ValueError``) if the tokenizer has ids that the model
            does not.
    """
    config = pipeline_config.model.huggingface_config if pipeline_config else None
    if config is None:
        return len(delegate)
    size = int(text_config(config).vocab_size)
    token, last = max(delegate.get_vocab().items(), key=lambda item: item[1])
    if last >= size:
        raise UserError(
            f"the tokenizer of {model_path} has {token!r} with the id {last}, but "
            f"the model has ids up to {size - 1} (vocab_size in config.json). Copy "
            "the tokenizer that belongs to the checkpoint, or take the token out."
        )
    return size
