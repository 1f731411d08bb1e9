"""The public MistralConfig, called as MAX 26.3's page and as 26.7's framework do."""

import dataclasses
import json

import pytest
from max.dtype import DType
from max.graph import DeviceRef
from max.nn.kv_cache import KVCacheParams
from max.nn.transformer import ReturnLogits
from max.pipelines.lib.interfaces.arch_config import ArchConfigWithKVCache

from max_mistral import MistralConfig, MistralModel
from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

PAGE_FIELDS = [
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
    "vocab_size",
    "rope_theta",
    "max_seq_len",
    "rms_norm_eps",
    "feed_forward_length",
    "dtype",
    "kv_params",
    "attention_multiplier",
    "devices",
]


@pytest.fixture(scope="module")
def pipeline_config(checkpoint):
    return make_pipeline_config(checkpoint)


@pytest.fixture(scope="module")
def config(pipeline_config):
    return MistralConfig.initialize(pipeline_config)


def test_every_field_of_the_page(config):
    assert isinstance(config, ArchConfigWithKVCache)
    assert config.hidden_size == 96
    assert config.num_attention_heads == 4
    assert config.num_key_value_heads == 1
    assert config.num_hidden_layers == 3
    assert config.head_dim == 32
    assert config.vocab_size == 320
    assert config.rope_theta == 10000.0
    assert config.max_seq_len == 256
    assert config.rms_norm_eps == 1e-5
    assert config.feed_forward_length == 160
    assert config.dtype == DType.float32
    assert isinstance(config.kv_params, KVCacheParams)
    assert config.kv_params.head_dim == 32
    assert config.attention_multiplier == pytest.approx(32**-0.5)
    assert config.devices == [DeviceRef.CPU()]
    assert config.return_logits == ReturnLogits.LAST_TOKEN


def test_the_fields_of_the_page_alone_construct_it(config):
    values = {name: getattr(config, name) for name in PAGE_FIELDS}
    built = MistralConfig(**values)
    assert built.return_logits == ReturnLogits.LAST_TOKEN
    required = [
        field.name
        for field in dataclasses.fields(MistralConfig)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    assert required == PAGE_FIELDS


def test_it_is_keyword_only(config):
    with pytest.raises(TypeError):
        MistralConfig(*(getattr(config, name) for name in PAGE_FIELDS))


def test_accessors(config, pipeline_config):
    hf = pipeline_config.model.huggingface_config
    assert config.get_kv_params() is config.kv_params
    assert config.get_max_seq_len() == 256
    assert MistralConfig.get_head_dim(hf) == 32
    assert MistralConfig.get_head_dim(huggingface_config=hf) == 32
    assert MistralConfig.get_num_layers(hf) == 3


def test_initialize_takes_the_frameworks_max_seq_len(pipeline_config):
    model, hf = pipeline_config.model, pipeline_config.model.huggingface_config
    for config in (
        MistralConfig.initialize(pipeline_config, max_seq_len=64),
        MistralConfig.initialize(pipeline_config, model, max_seq_len=64),
        MistralConfig.initialize(
            pipeline_config=pipeline_config, model_config=model, max_seq_len=64
        ),
        MistralConfig.initialize_from_config(pipeline_config, hf, max_seq_len=64),
        MistralConfig.initialize_from_config(
            pipeline_config=pipeline_config, huggingface_config=hf, max_seq_len=64
        ),
    ):
        assert config.max_seq_len == 64


def test_without_max_length_the_models_own_limit_counts(checkpoint):
    pipeline_config = make_pipeline_config(checkpoint, max_length=None)
    assert MistralConfig.initialize(pipeline_config).max_seq_len == 512


def test_calculate_max_seq_len_in_either_order(pipeline_config):
    hf, model = pipeline_config.model.huggingface_config, pipeline_config.model
    calls = [
        MistralConfig.calculate_max_seq_len(pipeline_config, hf),
        MistralConfig.calculate_max_seq_len(
            pipeline_config=pipeline_config, huggingface_config=hf
        ),
        MistralConfig.calculate_max_seq_len(hf, model),
        MistralConfig.calculate_max_seq_len(huggingface_config=hf, model_config=model),
        MistralModel.calculate_max_seq_len(pipeline_config, hf),
        MistralModel.calculate_max_seq_len(
            pipeline_config=pipeline_config, huggingface_config=hf
        ),
    ]
    assert calls == [256] * len(calls)


def test_calculate_max_seq_len_refuses_other_arguments(pipeline_config):
    with pytest.raises(TypeError, match="calculate_max_seq_len takes"):
        MistralConfig.calculate_max_seq_len(pipeline_config)


@pytest.mark.parametrize("length", [0, 513])
def test_a_max_length_out_of_bounds_is_named_with_the_limit(checkpoint, length):
    with pytest.raises(ValueError, match=rf"max_length is {length}.* is 512"):
        make_pipeline_config(checkpoint, max_length=length)


def test_construct_kv_params_by_position_and_keyword(pipeline_config):
    hf, cpu = pipeline_config.model.huggingface_config, [DeviceRef.CPU()]
    kv_config = pipeline_config.model.kv_cache
    arguments = (hf, pipeline_config, cpu, kv_config, DType.float32)
    names = (
        "huggingface_config",
        "pipeline_config",
        "devices",
        "kv_cache_config",
        "cache_dtype",
    )
    for function in (MistralConfig.construct_kv_params, MistralModel.get_kv_params):
        for params in (
            function(*arguments),
            function(**dict(zip(names, arguments, strict=True))),
        ):
            assert params.n_kv_heads == 1
            assert params.head_dim == 32
            assert params.num_layers == 3
            assert params.dtype == DType.float32


def test_a_null_head_dim(tmp_path):
    folder = write_checkpoint(tmp_path, BASE | {"head_dim": None})
    assert MistralConfig.initialize(make_pipeline_config(folder)).head_dim == 24


@pytest.mark.parametrize(
    ("window", "max_length", "effective"),
    [(None, 256, None), (256, 256, None), (255, 256, 255), (128, 200, 128)],
)
def test_a_window_counts_only_where_a_sequence_outgrows_it(
    tmp_path, window, max_length, effective
):
    folder = write_checkpoint(tmp_path, BASE | {"sliding_window": window})
    pipeline_config = make_pipeline_config(folder, max_length=max_length)
    config = MistralConfig.initialize(pipeline_config)
    assert config.sliding_windows == [window] * 3
    assert config.layer_windows == [effective] * 3


def test_a_missing_window_is_that_of_the_first_mistral(tmp_path):
    without = {k: v for k, v in BASE.items() if k != "sliding_window"}
    folder = write_checkpoint(tmp_path, without | {"max_position_embeddings": 8192})
    config = MistralConfig.initialize(make_pipeline_config(folder, max_length=8192))
    assert config.layer_windows == [4096] * 3


def test_a_window_of_no_keys_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, BASE | {"sliding_window": 0})
    with pytest.raises(UserError, match="sliding_window = 0"):
        MistralConfig.initialize(make_pipeline_config(folder))


@pytest.mark.parametrize(
    ("mode", "format_", "found"),
    [
        ("on", None, DType.bfloat16),
        ("exact", None, DType.float32),
        ("portable", None, DType.float32),
        ("off", None, DType.float32),
        ("on", "float32", DType.float32),
        ("on", "bfloat16", DType.bfloat16),
        ("exact", "bfloat16", DType.bfloat16),
        ("on", "float8_e4m3fn", DType.int8),
        ("exact", "float8_e4m3fn", DType.int8),
        ("off", "bfloat16", "be bfloat16, but here on a CPU it can be float32. Leave"),
        ("off", "float8_e4m3fn", "be float8_e4m3fn, but here on a CPU it can be float"),
    ],
)
def test_the_kv_cache_on_a_cpu(tmp_path, monkeypatch, mode, format_, found):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    folder = write_checkpoint(tmp_path, BASE)
    pipeline_config = make_pipeline_config(folder, kv_cache_format=format_)
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            MistralConfig.initialize(pipeline_config)
        return
    config = MistralConfig.initialize(pipeline_config)
    (group,) = config.kv_groups
    assert group.dtype == found
    # Keys and values of 128 tokens in 3 layers; in int8 with a scale of 4 bytes.
    head = config.head_dim * found.size_in_bytes + 4 * (found == DType.int8)
    assert group.bytes_per_block == 2 * 128 * 3 * group.n_kv_heads * head


def test_a_kv_cache_in_8_bits_needs_whole_words(tmp_path):
    folder = write_checkpoint(tmp_path, BASE | {"head_dim": 10})
    pipeline_config = make_pipeline_config(folder, kv_cache_format="float8_e4m3fn")
    with pytest.raises(UserError, match="a multiple of 4, but it is 10"):
        MistralConfig.initialize(pipeline_config)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_pages_of_a_size_that_max_does_not_take(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    folder = write_checkpoint(tmp_path, BASE)
    for size in (128, 256):
        MistralConfig.initialize(make_pipeline_config(folder, kv_cache_page_size=size))
    for size in (-128, 0, 16, 192):
        pipeline_config = make_pipeline_config(folder, kv_cache_page_size=size)
        with pytest.raises(UserError, match=f"is {size}, but has to be a multiple of"):
            MistralConfig.initialize(pipeline_config)


def test_a_window_too_small_for_maxs_cpu_kernel_is_refused(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, BASE | {"sliding_window": 127})
    pipeline_config = make_pipeline_config(folder)
    assert MistralConfig.initialize(pipeline_config).layer_windows == [127] * 3
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    with pytest.raises(UserError, match=r"sliding_window is 127.*at least 128"):
        MistralConfig.initialize(pipeline_config)


def test_a_config_without_a_required_key_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, BASE)
    values = json.loads((folder / "config.json").read_text())
    del values["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="lacks intermediate_size"):
        MistralConfig.initialize(make_pipeline_config(folder))


def test_cpu_with_bfloat16_leads_to_the_flag_that_works(tmp_path):
    folder = write_checkpoint(tmp_path, BASE, dtype="bfloat16")
    with pytest.raises(ValueError, match="float32"):
        make_pipeline_config(folder, quantization_encoding="bfloat16")


@pytest.mark.parametrize(
    ("hidden", "wide", "heads", "kv_heads", "packed", "shared"),
    [
        (576, 1536, 9, 3, True, False),  # SmolLM2-135M
        (2048, 5632, 32, 4, True, False),  # 1.1B
        (4096, 14336, 32, 8, True, True),  # 7B
        (576, 1536, 9, 3, False, True),  # a GPU
    ],
)
def test_small_blocks_on_a_cpu_are_compiled_one_by_one(
    config, hidden, wide, heads, kv_heads, packed, shared
):
    made = dataclasses.replace(
        config,
        hidden_size=hidden,
        feed_forward_length=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        encodings={"w": Encoding.BF16} if packed else {},
    )
    assert made.shares_blocks == shared
    assert not dataclasses.replace(made, use_subgraphs=False).shares_blocks
