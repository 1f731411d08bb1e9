"""Models that are not ours are refused by name, wherever a checkpoint says so."""

import json

import gguf
import pytest
from transformers import AutoConfig

from max_mistral import MistralConfig
from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.prepare.native import read_config
from max_mistral.weights.gguf_file import GGUFCheckpoint
from tests.unit.test_native import PARAMS
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

MLA = {"q_lora_rank": 1024, "kv_lora_rank": 256, "qk_nope_head_dim": 64}
MOE = {"num_experts": 128, "num_experts_per_tok": 4, "num_shared_experts": 1}
WHISPER = {"whisper_model_args": {"encoder_args": {"dim": 1280}}}


@pytest.fixture(scope="module")
def pipeline_config(checkpoint):
    return make_pipeline_config(checkpoint)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        # As published, Small 4 is behind the name of Small 3.1.
        (
            {"model_type": "mistral3", "text_config": {"model_type": "mistral4"}},
            "Mistral Small 4, a mixture of experts with latent attention",
        ),
        ({"model_type": "mistral4"}, "Mistral Small 4"),
        ({"model_type": "deepseek_v3"}, "DeepSeek or Mistral Large 3"),
        ({"model_type": "mixtral"}, "Mixtral"),
        ({"model_type": "voxtral"}, "Voxtral, which hears audio"),
        ({"model_type": "mistral", "audio_config": {"a": 1}}, "Voxtral"),
        ({"model_type": "llava"}, "LLaVA or Pixtral"),
        ({"model_type": "mamba2"}, "Mamba-Codestral"),
        (
            {
                "model_type": "mistral",
                "architectures": ["MistralForSequenceClassification"],
            },
            "a reward model or a classifier",
        ),
        ({"model_type": "mistral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "mistral", **MLA}, "latent attention"),
    ],
)
def test_config_json(pipeline_config, tmp_path, config, name):
    found = AutoConfig.for_model(**config)
    with pytest.raises(UserError, match=f"config.json is of .*{name}"):
        MistralConfig.initialize_from_config(pipeline_config, found)
    # The same file in prepare's hands.
    write_checkpoint(tmp_path / "src", BASE)
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json is of .*{name}"):
        prepare(tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize("kind", ["llama", "granite", "smollm3"])
def test_a_mistral_by_its_architecture_only(pipeline_config, kind):
    found = AutoConfig.for_model(kind, architectures=["MistralForCausalLM"])
    with pytest.raises(UserError, match=f"model_type = '{kind}'.*'ministral3'"):
        MistralConfig.initialize_from_config(pipeline_config, found)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"moe": MOE, **MLA}, "Mistral Large 3 or Small 4"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "Mixtral"),
        ({"multimodal": WHISPER}, "Voxtral"),
        ({"model_type": "mamba"}, "Mamba-Codestral"),
    ],
)
def test_params_json(tmp_path, changes, name):
    path = tmp_path / "params.json"
    path.write_text(json.dumps(PARAMS | changes))
    with pytest.raises(UserError, match=f"params.json is of {name}"):
        read_config(path)


@pytest.mark.parametrize(
    ("architecture", "keys", "name"),
    [
        ("mistral4", {}, "Mistral Small 4"),
        ("deepseek2", {}, "DeepSeek or Mistral Large 3"),
        ("llama", {"llama.expert_count": 8}, "Mixtral"),
        ("mamba2", {}, "Mamba-Codestral"),
        ("clip", {}, "the image or audio tower"),
    ],
)
def test_gguf(tmp_path, architecture, keys, name):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=f"m.gguf is of {name}"):
        GGUFCheckpoint(path)


def test_a_vision_tower_and_a_single_expert_are_no_other_model(tmp_path):
    path = tmp_path / "params.json"
    path.write_text(json.dumps(PARAMS | {"vision_encoder": {"hidden_size": 8}}))
    assert read_config(path)["model_type"] == "mistral"
