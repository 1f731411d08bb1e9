"""Mistral's own tokenizer files, as mistral-common carries them, and later ones."""

import json
import shutil
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.base import SpecialTokens

from max_mistral.prepare.mistral_tokenizer import write_tokenizer

from .checkpoints import BASE, write_checkpoint

DATA = Path(mistral_common.__file__).parent / "data"

# The file in the package, and its name in a checkpoint.
BUNDLED = {
    "v1": ("tokenizer.model.v1", "tokenizer.model"),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2"),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    "v7": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    "v7m1": ("mistral_instruct_tokenizer_241114.model.v7m1", "tokenizer.model.v7m1"),
    "v3 tekken": ("tekken_240718.json", "tekken.json"),
    "v3 tekken, images": ("tekken_240911.json", "tekken.json"),
}
# None is bundled: these are v3's vocabulary with the version and the control
# tokens of later ones.
MADE = ["v7 tekken", "v11 tekken", "v13 tekken", "v15 tekken"]
KINDS = [*BUNDLED, *MADE]


def tokenizer_file(kind: str) -> Path:
    """Returns one of the bundled files."""
    return DATA / BUNDLED[kind][0]


def write_file(kind: str, folder: Path) -> Path:
    """Writes Mistral's own tokenizer file of any kind, as a checkpoint has it."""
    if kind in BUNDLED:
        return Path(shutil.copy(tokenizer_file(kind), folder / BUNDLED[kind][1]))
    file = json.loads(tokenizer_file("v3 tekken").read_text())
    version = kind.split()[0]
    names = [str(name) for name in SpecialTokens]
    count = file["config"]["default_num_special_tokens"]
    names += [f"<SPECIAL_{i}>" for i in range(len(names), count)]
    file["special_tokens"] = [
        {"rank": i, "token_str": name, "is_control": True}
        for i, name in enumerate(names)
    ]
    file["config"]["version"] = version
    if version == "v15":
        file["model_settings_builder"] = {
            "reasoning_effort": {
                "type": "enum",
                "values": ["none", "high"],
                "accepts_none": True,
                "default": "none",
            }
        }
    (folder / "tekken.json").write_text(json.dumps(file))
    return folder / "tekken.json"


def write_model(kind: str, folder: Path) -> Path:
    """Writes a tiny seeded checkpoint with a real tokenizer; returns its own file.

    The folder has the file as it is and, as ``prepare`` converts it, as
    Hugging Face's.
    """
    folder.mkdir(parents=True)
    file = write_file(kind, folder)
    size = write_tokenizer(file, folder)
    written = {p: p.read_bytes() for p in folder.glob("tokenizer*.json")}
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    write_checkpoint(folder, BASE | tiny | {"vocab_size": size})
    for path, content in written.items():
        path.write_bytes(content)
    return file
