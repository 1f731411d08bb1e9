"""Mistral for Modular MAX: a drop-in for the built-in architecture."""

from ._compat import check_max_compiles, check_max_version, installed_max

check_max_version(installed_max())
check_max_compiles()

from .arch import ARCHITECTURES, mistral_arch  # noqa: E402
from .inputs import MistralInputs  # noqa: E402
from .model import MistralModel  # noqa: E402
from .model_config import MistralConfig  # noqa: E402

__all__ = [
    "ARCHITECTURES",
    "MistralConfig",
    "MistralInputs",
    "MistralModel",
    "mistral_arch",
]
