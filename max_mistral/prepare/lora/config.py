"""What an adapter says of itself, in ``adapter_config.json``.

Source: PEFT 0.21, ``peft/tuners/lora/config.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ...errors import UserError, shown
from ...fields import MOST_LAYERS, MOST_WIDE, Fields
from ...weights.safetensors_file import SafeTensor
from .maths import scaling

_READ = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias"),
    *("rank_pattern", "alpha_pattern", "modules_to_save", "target_modules"),
    *("layers_to_transform", "init_lora_weights"),
)
# What was for training or for finding modules; the tensors show what came of it.
_NOT_NEEDED = (
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("task_type", "inference_mode", "lora_dropout", "exclude_modules"),
    *("layers_pattern", "megatron_core", "qalora_group_size", "runtime_config"),
    *("eva_config", "parent_library", "unsloth_fixed"),
    # Of LoftQ alone, which init_lora_weights names.
    "loftq_config",
    # For GPT-2's transposed layers; PEFT takes it back for any other
    # (``dispatch_default``).
    "fan_in_fan_out",
)
# The others change the base too: PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
# PEFT saves these whole where it thinks that they changed.
_EMBEDDINGS = ("embed_tokens", "lm_head")


class AdapterConfig:
    """What ``adapter_config.json`` says.

    Args:
        source: What to call the file in a message.
        found: Its content.

    Raises:
        UserError: (a ``ValueError``) naming what is not LoRA as it is merged
            here; so do its methods.
    """

    def __init__(self, source: str, found: dict[str, Any]) -> None:
        self.source, self.found = source, found
        self.fields = Fields(source, found.get)
        self.fields.one_of("peft_type", ("LORA",))
        self.fields.one_of("bias", ("none",), default="none")
        init = self.found.get("init_lora_weights")
        if init is not None and init not in _INITS:
            expected = " or ".join(map(repr, _INITS))
            self.fields.refuse(
                "init_lora_weights",
                init,
                f"{expected}: others change the base too",
                "Convert it with PEFT's "
                "save_pretrained(path_initial_model_for_weight_conversion=...).",
            )
        for key, value in self.found.items():
            if value and key not in (*_READ, *_NOT_NEEDED):
                self.fields.refuse(key, value, "an adapter without it")
        self.rank = self.fields.integer("r", high=MOST_WIDE)
        self.alpha = self.fields.number("lora_alpha")
        self.rank_stabilized = self.fields.boolean("use_rslora", default=False)
        self.dora = self.fields.boolean("use_dora", default=False)
        self.ranks = self.patterns("rank_pattern")
        self.alphas = self.patterns("alpha_pattern")
        self.saved = self.names("modules_to_save") or []
        # An expression chose them once; the tensors show which.
        expression = isinstance(self.found.get("target_modules"), str)
        self.targets = None if expression else self.names("target_modules")
        layers = self.found.get("layers_to_transform")
        if isinstance(layers, list):
            layers = self.fields.items("layers_to_transform", int, MOST_LAYERS)
        elif layers is not None:
            layers = [self.fields.integer("layers_to_transform", 0, MOST_LAYERS)]
        self.layers = layers

    def names(self, key: str) -> list[str] | None:
        """Returns a list of strings, ``None`` where there is none."""
        return self.fields.items(key, str) if self.fields.has(key) else None

    def patterns(self, key: str) -> dict[re.Pattern[str], float]:
        """Returns what ``rank_pattern`` or ``alpha_pattern`` maps to numbers."""
        if not self.found.get(key):
            return {}
        patterns = self.fields.fields(key)
        compiled = {}
        for name in self.found[key]:
            # Others can be made to take for ever.
            repeats = re.findall(r"(?<!\\)[*+{]", name)
            choices = re.findall(r"(?<!\\)[?|]", name)
            if len(repeats) > 2 or len(choices) > 8 or re.search(r"\)[*+{]", name):
                self.fields.refuse(
                    key, name, "two repetitions at most, not of groups, and 8 choices"
                )
            try:
                # get_pattern_key, peft/utils/other.py
                expression = re.compile(rf"(.*\.)?({name})$")
            except (re.error, OverflowError, RecursionError):
                self.fields.refuse(key, name, "regular expressions")
            whole = key == "rank_pattern"
            compiled[expression] = (
                patterns.integer(name, high=MOST_WIDE)
                if whole
                else patterns.number(name)
            )
        return compiled

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's pair."""
        return int(_first(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """Returns what the product of a module's pair is multiplied by."""
        alpha, rank = _first(self.alphas, module, self.alpha), self.rank_of(module)
        return scaling(alpha, rank, rank_stabilized=self.rank_stabilized)

    def check_module(
        self, module: str, part: Mapping[str, SafeTensor], *, embedding: bool
    ) -> None:
        """Refuses a module that has not all it should, or that should have nothing."""
        kind = "embedding " if embedding else ""
        pair = {f"{kind}a", f"{kind}b", *(["magnitude"] if self.dora else [])}
        low_rank = part.keys() - {"whole"}
        if low_rank and low_rank != pair:
            self.refuse(
                f"is of an adapter whose tensors for {module} are "
                f"{', '.join(sorted(low_rank))}, not {', '.join(sorted(pair))}"
            )
        if "whole" in part and not module.endswith((*self.saved, *_EMBEDDINGS)):
            self.refuse(f"has no {module} in modules_to_save, but its weight is there")
        if low_rank and self.targets is not None and not _named(module, self.targets):
            self.refuse(f"has no {module} in target_modules, but its pair is there")
        layer = re.search(r"layers\.(\d+)\.", module)
        allowed = self.layers is None or layer is None or int(layer[1]) in self.layers
        if low_rank and not allowed:
            listed = shown(self.found.get("layers_to_transform"))
            self.refuse(
                f"lists the layers {listed} in layers_to_transform, but the adapter "
                f"has tensors for {module}"
            )

    def check_shapes(
        self,
        module: str,
        part: Mapping[str, SafeTensor],
        shape: tuple[int, ...],
        *,
        embedding: bool,
    ) -> None:
        """Refuses an adapter of a model of another size."""
        rank = self.rank_of(module)
        # A norm has no pair.
        rows, columns = shape if len(shape) == 2 else (0, 0)
        if embedding:
            rows, columns = columns, rows
        for what, tensor in part.items():
            expected = {
                "whole": shape,
                "magnitude": (rows,),
                "a": (rank, columns),
                "b": (rows, rank),
            }[what.removeprefix("embedding ")]
            if tensor.shape != expected:
                self.refuse(
                    f"is of an adapter whose {what} for {module} is "
                    f"{list(tensor.shape)}, where r and the base make it "
                    f"{list(expected)}",
                    "Give the base that it was trained on, "
                    f"{shown(self.found.get('base_model_name_or_path'))}; a vocabulary "
                    "of another size cannot be merged.",
                )

    def check_complete(
        self,
        modules: Collection[str],
        known: Collection[str],
        left_out: Collection[str] = (),
    ) -> None:
        """Refuses a file that lacks a module which should be there.

        Args:
            modules: Those that the adapter changes.
            known: All of the base, by each spelling.
            left_out: Names of the adapter's tensors that are not merged.
        """
        for name in self.saved:
            # No dot before it: "norm" is input_layernorm too (PEFT, _set_trainable).
            if not any(module.endswith(name) for module in known):
                if any(f".{name}." in f".{other}" for other in left_out):
                    continue
                self.refuse(f"has {name} in modules_to_save, which the base has not")
            if not any(module.endswith(name) for module in modules):
                self.refuse(f"lists {name}, but the adapter has no tensors for it")
        targets = [] if self.found.get("exclude_modules") else self.targets or []
        for name in targets:
            there = any(_named(module, [name]) for module in modules)
            if not there and any(_named(module, [name]) for module in known):
                self.refuse(f"lists {name}, but the adapter has no tensors for it")

    def refuse(self, why: str, mend: str = "Save the adapter again with PEFT.") -> None:
        """Raises a ``UserError``."""
        raise UserError(f"{self.source} {why}. {mend}")


def _first(
    patterns: Mapping[re.Pattern[str], float], module: str, default: float
) -> float:
    return next((v for p, v in patterns.items() if p.match(module)), default)


def _named(module: str, names: list[str]) -> bool:
    """Whether one of ``names`` is the module's, or the end of it from a dot on."""
    return any(module == name or module.endswith(f".{name}") for name in names)
