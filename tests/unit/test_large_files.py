"""Files of a checkpoint that are far larger than any of their kind."""

import json

import pytest
from transformers import AutoConfig

from max_mistral import fields
from max_mistral.embeddings.recipe import _read_list
from max_mistral.errors import UserError
from max_mistral.fields import MOST_FILE, read_json
from max_mistral.prepare import prepare
from max_mistral.prepare.lora.adapter import read_adapter
from max_mistral.prepare.mistral_tokenizer import write_tokenizer
from tests.lora_reference import GOLDENS, TINY
from tests.unit.test_tekken_only import without_json

HUGE = 100 * 2**30


def enlarge(path):
    """Makes it a sparse file, which no memory of a test's machine holds."""
    with path.open("wb") as file:
        file.truncate(HUGE)
    return path


def write(path):
    return write_tokenizer(path, path.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_json),
        ("tekken.json", write),
        ("tokenizer.model", write),
        ("modules.json", _read_list),
    ],
)
def test_it_is_not_read(tmp_path, name, read):
    path = enlarge(tmp_path / name)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value) == (
        f"{path} has {HUGE} bytes; expected {MOST_FILE} at most. Fetch it again."
    )


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("config.json", None),
        ("tokenizer_config.json", None),
        ("added_tokens.json", None),
        ("config.json", GOLDENS / "plain"),
    ],
)
def test_prepare_refuses_it(tmp_path, name, lora):
    source = without_json(tmp_path / "src")
    enlarge(source / name)
    with pytest.raises(UserError, match=f"{name} has {HUGE} bytes"):
        prepare(source, tmp_path / "dst", lora=lora)


def test_an_adapters_config(tmp_path):
    for path in (GOLDENS / "plain").glob("adapter*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    enlarge(tmp_path / "adapter_config.json")
    with pytest.raises(UserError, match=r"adapter_config\.json has "):
        read_adapter(tmp_path, AutoConfig.for_model(**TINY))


def test_the_largest_is_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": 1}))
    monkeypatch.setattr(fields, "MOST_FILE", path.stat().st_size)
    assert read_json(path) == {"a": 1}
    path.write_text(json.dumps({"a": 10}))
    with pytest.raises(UserError, match="has 9 bytes; expected 8 at most"):
        read_json(path)
