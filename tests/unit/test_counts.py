"""What a config.json may say at which transformers would work without end."""

import json
import re
from unittest.mock import Mock

import pytest
from transformers import AutoConfig

from max_mistral.errors import UserError
from max_mistral.hf_config import check_raw
from max_mistral.prepare import prepare
from max_mistral.prepare.lora.plan import read_hf_config
from tests.lora_reference import GOLDENS
from workbench.checkpoints import BASE

# transformers repeats the first list as often as the number says.
ENDLESS = {"model_type": "gpt_neo", "attention_types": [[[], 10**18]]}
HUGE = {"model_type": "gpt_neo", "attention_types": [["global"], 10**10]}

HOSTILE = [
    (
        {"model_type": "ministral", "num_hidden_layers": 2 * 10**9},
        "num_hidden_layers = 2000000000; expected 4096 at most",
    ),
    ({"num_labels": 10**9}, "num_labels = 1000000000; expected 65536 at most"),
    ({"text_config": {"num_labels": 10**9}}, ": text_config has num_labels"),
    ({"vision_config": {"n": {"n_layer": 10**9}}}, ": vision_config: n has n_layer"),
    (ENDLESS, "model_type = 'gpt_neo'; expected 'mistral' or"),
    (HUGE, "model_type = 'gpt_neo'; expected 'mistral' or"),
    ({"text_config": ENDLESS}, ": text_config has model_type = 'gpt_neo'; expected"),
    ({"vision_config": HUGE}, ": vision_config has model_type = 'gpt_neo'; expected"),
    ({"text_config": {"model_type": "mistral3"}}, "text_config has model_type"),
    ({"model_type": None}, "lacks model_type"),
    # transformers would read that file instead.
    (
        {"configuration_files": ["config.1.json"]},
        "configuration_files = ['config.1.json']; expected no such key",
    ),
    ({"configuration_files": 5}, "configuration_files = 5; expected no such key"),
]


@pytest.mark.parametrize(("hostile", "says"), HOSTILE)
def test_it_is_refused_before_the_list_is_made(tmp_path, monkeypatch, hostile, says):
    """As an adapter's base, too: max-mistral itself is in ``command/``."""
    with pytest.raises(UserError, match=re.escape(says)):
        check_raw("config.json", BASE | hostile)
    makes = Mock()
    monkeypatch.setattr(AutoConfig, "for_model", makes)
    with pytest.raises(UserError, match=re.escape(says)):
        read_hf_config(tmp_path, BASE | hostile)
    assert not makes.called


@pytest.mark.parametrize("lora", [None, GOLDENS / "plain"], ids=["link", "merge"])
@pytest.mark.parametrize(("hostile", "says"), HOSTILE)
def test_prepare_refuses_it(tmp_path, hostile, says, lora):
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(BASE | hostile))
    with pytest.raises(UserError, match=re.escape(says)):
        prepare(source, tmp_path / "new", lora=lora)


@pytest.mark.parametrize(
    "usual",
    [
        {"num_hidden_layers": 4096, "num_labels": 2, "max_window_layers": None},
        # What is no whole number is for others to refuse.
        {"num_hidden_layers": "x", "num_labels": 1e9, "layers": [10**9]},
        {"vocab_size": 10**9},
        {"model_type": "mistral3", "text_config": BASE, "vision_config": {}},
        {"text_config": {"model_type": "ministral3"}, "vision_config": None},
        {"vision_config": {"model_type": "pixtral"}},
        # As is what is no object.
        {"text_config": 7, "vision_config": ["pixtral"]},
    ],
)
def test_what_is_no_such_thing_passes(usual):
    check_raw("config.json", BASE | usual)
