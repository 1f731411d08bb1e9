"""Counts in a config.json of which transformers would make a list without end."""

from unittest.mock import Mock

import pytest
from transformers import AutoConfig

from max_mistral.errors import UserError
from max_mistral.hf_config import check_counts
from max_mistral.prepare.lora.plan import read_hf_config
from workbench.checkpoints import BASE


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (
            {"model_type": "ministral", "num_hidden_layers": 2 * 10**9},
            "num_hidden_layers = 2000000000; expected 4096 at most",
        ),
        ({"num_labels": 10**9}, "num_labels = 1000000000; expected 65536 at most"),
        ({"text_config": {"num_labels": 10**9}}, "text_config has num_labels"),
        ({"vision_config": {"n": {"n_layer": 10**9}}}, "vision_config: n has n_layer"),
    ],
)
def test_it_is_refused_before_the_list_is_made(tmp_path, monkeypatch, hostile, says):
    """As an adapter's base, too: max-mistral itself is in ``command/``."""
    with pytest.raises(UserError, match=says):
        check_counts("config.json", BASE | hostile)
    makes = Mock()
    monkeypatch.setattr(AutoConfig, "for_model", makes)
    with pytest.raises(UserError, match=says):
        read_hf_config(tmp_path, BASE | hostile)
    assert not makes.called


@pytest.mark.parametrize(
    "usual",
    [
        {"num_hidden_layers": 4096, "num_labels": 2, "max_window_layers": None},
        # What is no whole number is for others to refuse.
        {"num_hidden_layers": "x", "num_labels": 1e9, "layers": [10**9]},
        {"vocab_size": 10**9},
    ],
)
def test_what_is_no_such_count_passes(usual):
    check_counts("config.json", BASE | usual)
