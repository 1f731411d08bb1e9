"""The seams, by what they are about, in the order of the table in CONTRIBUTING.md."""

import importlib

MODULES = [
    f"{__name__}.{part}"
    for part in (
        "registration",
        "loading",
        "inputs",
        "layers",
        "tokenizer",
        "requests",
        "answers",
        "chat",
        "files",
        "decoding",
    )
]


def load() -> None:
    """Registers them all."""
    for module in MODULES:
        importlib.import_module(module)
