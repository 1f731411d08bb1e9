"""How a model embeds, from a checkpoint and an adapter into the merged folder."""

import json

import pytest

from max_mistral.embeddings import MistralEmbeddingConfig
from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from tests.lora_reference import GOLDENS, TINY
from tests.unit.test_embeddings import LAST, configure, write_recipe
from workbench.checkpoints import write_checkpoint

MEAN = {"pooling_mode": "mean"}


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in (GOLDENS / "plain").glob("adapter*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("base_pools", "adapter_pools", "refused"),
    [
        (None, None, False),
        (LAST, None, False),
        (MEAN, None, True),
        (None, MEAN, True),
        # The adapter was trained last.
        (MEAN, LAST, False),
        (LAST, MEAN, True),
    ],
)
def test_the_merged_model_pools_as_it_was_trained(
    tmp_path, adapter, base_pools, adapter_pools, refused
):
    base = write_checkpoint(tmp_path / "base", TINY)
    for folder, pooling in ((base, base_pools), (adapter, adapter_pools)):
        if pooling is not None:
            write_recipe(folder, pooling=pooling)
    prepare(base, tmp_path / "new", lora=adapter)
    config = configure(tmp_path / "new")
    if refused:
        with pytest.raises(UserError, match="'mean'"):
            MistralEmbeddingConfig.initialize(config)
    else:
        MistralEmbeddingConfig.initialize(config)


@pytest.mark.parametrize("adds", [None, False, True])
def test_an_adapter_whose_texts_end_otherwise(tmp_path, adapter, adds):
    base = write_checkpoint(tmp_path / "base", TINY)
    if adds is not None:
        text = json.dumps({"add_eos_token": adds})
        (adapter / "tokenizer_config.json").write_text(text)
    notes = prepare(base, tmp_path / "new", lora=adapter)
    assert len(notes) == bool(adds)
    assert not adds or "add_eos_token = True" in notes[0]
