"""Which checkpoints embed, and how their texts end."""

import asyncio
import json
import shutil
from functools import partial
from types import SimpleNamespace

import gguf
import huggingface_hub
import pytest
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context.exceptions import PromptTooLongError
from max.pipelines.lib.memory_estimation import MemoryEstimator
from max.pipelines.modeling.types import PipelineTask
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from max_mistral import ARCHITECTURES, hf_files, mistral_arch
from max_mistral.arch import mistral_embedding_arch
from max_mistral.command.hub import _wanted
from max_mistral.embeddings import (
    MistralEmbeddingConfig,
    MistralEmbeddingTokenizer,
    recipe,
)
from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from tests.harness import load_safetensors
from tests.unit.test_gguf import write_gguf as write_tiny_gguf
from workbench.checkpoints import BASE, write_checkpoint, write_gguf, write_headless
from workbench.runner import make_pipeline_config

TASK = PipelineTask.EMBEDDINGS_GENERATION
EOS = 2


def configure(folder, **flags):
    return make_pipeline_config(folder, **{"task": TASK} | flags)


@pytest.fixture
def headless(tmp_path):
    return write_headless(tmp_path / "headless", BASE)


def test_every_architecture_embeds_and_one_only_embeds():
    found = {(arch.name, arch.task) for arch in ARCHITECTURES}
    assert len(found) == len(ARCHITECTURES)
    generate = {name for name, task in found if task == mistral_arch.task}
    embed = {name for name, task in found if task == TASK}
    assert embed - generate == {"MistralModel"}
    assert generate < embed


def test_a_headless_model_needs_no_flag(headless):
    make_pipeline_config(headless)
    assert PIPELINE_REGISTRY.retrieve_pipeline_task("MistralModel") == TASK
    assert PIPELINE_REGISTRY.retrieve_pipeline_task("MistralForCausalLM") != TASK


# The weights.


def test_the_names_of_a_headless_model(headless):
    config = configure(headless)
    got = load_safetensors(config, headless=True)
    assert "lm_head.weight" not in got
    folder = write_checkpoint(headless.parent / "whole", BASE)
    assert load_safetensors(configure(folder), headless=True).keys() == got.keys()
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        load_safetensors(config)


# The cache of a step.


def test_the_cache_has_one_layer_and_room_for_the_longest_text(checkpoint):
    flags = {"max_length": 300, "max_batch_input_tokens": 200}
    config = MistralEmbeddingConfig.initialize(configure(checkpoint, **flags))
    assert config.kv_params.num_layers == 1
    assert not config.kv_params.enable_prefix_caching
    assert config.decoder.kv_places == [(0, 0)] * BASE["num_hidden_layers"]
    assert config.pages(1) == config.pages(128) == 1
    assert config.step_pages == config.pages(300) == 3
    # Its matmuls are checked for as many rows.
    assert config.decoder.step_tokens == 300
    more = configure(checkpoint, max_length=300, max_batch_input_tokens=1024)
    assert MistralEmbeddingConfig.initialize(more).step_pages == 8


@pytest.mark.parametrize(("asked", "batch"), [(None, 8), (1, 1), (40, 40)])
def test_texts_at_a_time(checkpoint, asked, batch):
    config = configure(checkpoint, max_batch_size=asked)
    plan = MemoryEstimator.plan(config, mistral_embedding_arch)
    assert plan.planned_max_batch_size == batch


# What is not the last token's state, normalized.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pool_embeddings": False}, "--no-pool-embeddings"),
        ({"data_parallel_degree": 2}, "--data-parallel-degree is 2"),
        ({"kv_connector_config": {"type": "rust_tiered"}}, "has the type rust_tiered"),
    ],
)
def test_flags_that_are_refused(checkpoint, flags, words):
    config = configure(checkpoint, **flags)
    with pytest.raises(UserError, match=words):
        MistralEmbeddingConfig.initialize(config)


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}
LAST = {"word_embedding_dimension": 96, "pooling_mode_lasttoken": True}


def write_recipe(folder, modules=MODULES, pooling=LAST):
    text = modules if isinstance(modules, str) else json.dumps(modules)
    (folder / "modules.json").write_text(text)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    "pooling",
    [
        LAST,
        LAST | {"pooling_mode_cls_token": False},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["lasttoken"]},
    ],
)
def test_a_recipe_that_is_ours(headless, pooling):
    write_recipe(headless, pooling=pooling)
    MistralEmbeddingConfig.initialize(configure(headless))


def test_all_that_a_recipe_is_made_of_is_fetched(headless):
    write_recipe(headless)
    (headless / "2_Normalize").mkdir()
    paths = [path for path in headless.rglob("*") if path.is_file()]
    names = [path.relative_to(headless).as_posix() for path in paths]
    fetched = _wanted(names, "a/b", None)
    for name in set(names) - set(fetched):
        (headless / name).unlink()
    MistralEmbeddingConfig.initialize(configure(headless))
    assert {"modules.json", "1_Pooling/config.json"} <= set(fetched)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"pooling": {"pooling_mode_mean_tokens": True}}, "'mean_tokens'"),
        ({"pooling": LAST | {"pooling_mode_max_tokens": True}}, "'max_tokens'"),
        ({"pooling": {"pooling_mode": "mean"}}, "'mean'"),
        ({"pooling": {"pooling_mode": ["lasttoken", "mean"]}}, "and 'mean'"),
        # As sentence-transformers does where nothing is said.
        ({"pooling": {"word_embedding_dimension": 96}}, "'mean'"),
        ({"pooling": {"pooling_mode_lasttoken": False}}, "'mean'"),
        ({"modules": []}, "0 steps of type 'Pooling'"),
        ({"modules": [MODULES[0], MODULES[2]]}, "0 steps of type 'Pooling'"),
        ({"modules": [*MODULES, MODULES[1]]}, "2 steps of type 'Pooling'"),
        ({"modules": [*MODULES, DENSE]}, r"Dense"),
        ({"pooling": None}, "1_Pooling/config.json"),
        ({"modules": [{**MODULES[1], "path": "../x"}]}, r"a step at '\.\./x'"),
        ({"modules": [{**MODULES[1], "path": None}]}, "a step at None"),
        ({"modules": "{"}, "not valid JSON"),
        ({"modules": {"a": 1}}, "a list of objects"),
        ({"modules": [1]}, "a list of objects"),
        ({"modules": [{}]}, "a step of type None"),
    ],
)
def test_another_recipe_is_refused(headless, recipe, words):
    write_recipe(headless, **recipe)
    with pytest.raises(UserError, match=words):
        MistralEmbeddingConfig.initialize(configure(headless))


def test_texts_in_small_letters_are_refused(headless):
    write_recipe(headless)
    path = headless / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    MistralEmbeddingConfig.initialize(configure(headless))
    path.write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(UserError, match="do_lower_case"):
        MistralEmbeddingConfig.initialize(configure(headless))


@pytest.mark.parametrize("pooling", [None, 0, 3])
def test_a_gguf_file_that_does_not_say_leaves_it_to_the_folder(
    checkpoint, tmp_path, pooling
):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    write_recipe(folder, pooling={"pooling_mode": "mean"})
    extra = {} if pooling is None else {"llama.pooling_type": pooling}
    path = tmp_path / "m.gguf"
    write_gguf(path, BASE, gguf.GGMLQuantizationType.F32, extra)
    config = configure(folder, weight_path=[path])
    if pooling == 3:
        MistralEmbeddingConfig.initialize(config)
        return
    with pytest.raises(UserError, match="'mean'"):
        MistralEmbeddingConfig.initialize(config)


@pytest.mark.parametrize("known", [True, False])
def test_a_hub_that_cannot_be_asked_is_a_warning(tmp_path, monkeypatch, caplog, known):
    """Unless it is known from before that there is no modules.json."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--a--b"
    (cache / "snapshots" / "c").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("c")
    if known:
        (cache / ".no_exist" / "c").mkdir(parents=True)
        (cache / ".no_exist" / "c" / "modules.json").touch()
    for name in ("hf_hub_download", "try_to_load_from_cache"):
        asked = partial(getattr(huggingface_hub, name), cache_dir=tmp_path)
        monkeypatch.setattr(hf_files, name, asked)
    recipe.check_recipe(SimpleNamespace(**HUB))
    assert bool(caplog.records) != known


HUB = {"weight_path": [], "model_path": "a/b", "huggingface_model_revision": None}


def test_attention_to_what_follows_is_refused(headless):
    path = headless / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"is_causal": False}))
    with pytest.raises(UserError, match="is_causal = False"):
        MistralEmbeddingConfig.initialize(configure(headless))


@pytest.mark.parametrize("pooling", [None, 0, 3, 1, 4, "last"])
def test_the_pooling_of_a_gguf_file(checkpoint, tmp_path, pooling):
    path = tmp_path / "m.gguf"
    extra = {} if pooling is None else {"llama.pooling_type": pooling}
    write_gguf(path, BASE, gguf.GGMLQuantizationType.F32, extra)
    config = configure(checkpoint, weight_path=[path])
    if pooling in (None, 0, 3):
        MistralEmbeddingConfig.initialize(config)
        return
    with pytest.raises(UserError, match=r"llama\.pooling_type = "):
        MistralEmbeddingConfig.initialize(config)


# How a text ends.


def with_tokenizer(folder, template, **config):
    """Changes a checkpoint's tokenizer: what it puts around a text, and its config."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    special = [("<s>", 1), ("</s>", EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    tokenizer.save(str(path))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def encode(folder, given, max_length=256, **flags):
    config = configure(folder, max_length=None, **flags)
    tokenizer = MistralEmbeddingTokenizer(str(folder), config, max_length=max_length)
    return asyncio.run(tokenizer.encode(given)).tolist()


@pytest.mark.parametrize(
    ("template", "config", "ends"),
    [
        # As e5-mistral is published.
        ("<s> $A", {"add_eos_token": True}, True),
        ("<s> $A </s>", {"add_eos_token": True}, True),
        ("<s> $A </s>", {}, True),
        ("<s> $A", {}, False),
        ("<s> $A", {"add_eos_token": False}, False),
    ],
)
def test_a_text_ends_as_the_checkpoint_says(headless, template, config, ends):
    folder = with_tokenizer(headless, template, **config)
    ids = encode(folder, "ab")
    assert ids[0] == 1
    assert ids.count(EOS) == ends
    # What transformers makes of the folder, but for the end.
    theirs = AutoTokenizer.from_pretrained(folder).encode("ab")
    assert ids == [*theirs[:3], EOS] if ends else ids == theirs
    # Not once more where the text has it.
    if template == "<s> $A":
        assert encode(folder, "ab</s>").count(EOS) == 1
    assert encode(folder, [5, 6]) == [5, 6]


def test_the_end_counts_for_the_length(headless):
    folder = with_tokenizer(headless, "<s> $A", add_eos_token=True)
    assert len(encode(folder, "a" * 6, max_length=8)) == 8
    with pytest.raises(PromptTooLongError, match="9"):
        encode(folder, "a" * 7, max_length=8)


def test_an_end_that_is_no_token(headless):
    folder = with_tokenizer(headless, "<s> $A", add_eos_token=True, eos_token=None)
    with pytest.raises(UserError, match="no eos_token"):
        encode(folder, "ab")


def test_a_gguf_file_says_how_a_text_ends(tmp_path):
    path = write_tiny_gguf(tmp_path / "m.gguf", add_eos=True)
    prepare(path, tmp_path / "m")
    assert encode(tmp_path / "m", "aa", weight_path=[path]) == [1, 1, 2]
    # To transformers, and so before an answer, nothing changes.
    assert AutoTokenizer.from_pretrained(tmp_path / "m").encode("aa") == [1, 1]


def test_add_eos_token_must_be_a_boolean(headless):
    folder = with_tokenizer(headless, "<s> $A", add_eos_token="yes")
    with pytest.raises(UserError, match="add_eos_token"):
        encode(folder, "ab")
