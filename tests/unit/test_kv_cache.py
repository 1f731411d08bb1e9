"""A windowed layer's pages are given back as no token sees them any more."""

import numpy as np
import pytest
from max.driver import DeviceSpec
from max.dtype import DType
from max.graph import DeviceRef
from max.nn.kv_cache import KVCacheParams, MultiKVCacheParams
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import load_kv_manager

from max_mistral import MistralConfig
from max_mistral.errors import UserError
from max_mistral.kv_cache import FULL, SLIDING, check_cache
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

LONGEST = 8192
WINDOW = 1024
UNIFORM = BASE | {
    "sliding_window": WINDOW,
    "max_position_embeddings": LONGEST,
    "num_hidden_layers": 4,
}
MIXED = UNIFORM | {
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
}


def configure(folder, values, **flags):
    write_checkpoint(folder, values)
    flags = {"max_length": None} | flags
    return MistralConfig.initialize(make_pipeline_config(folder, **flags))


def held_bytes(params, tokens, chunk=512):
    """What one request's keys and values take after ``tokens``, read in chunks."""
    manager = load_kv_manager(
        params,
        max_batch_size=1,
        max_seq_len=LONGEST,
        session=None,
        available_cache_memory=64 << 20,
        is_di_enabled=False,
        model_name="",
        max_num_input_tokens=chunk,
    )
    prompt = np.arange(tokens // 2, dtype=np.int64) % 90
    context = TextContext(max_length=LONGEST, tokens=TokenBuffer(prompt))
    manager.claim(context)
    while len(context.tokens) < tokens:
        manager.alloc(context)
        if context.tokens.active_length > chunk:
            context.tokens.chunk(chunk)
        manager.runtime_inputs([[context]])
        context.update(5)
        manager.step(context)
    leaves = params.leaves()
    return sum(
        sum(page != 0 for page in pages) * leaves[name].bytes_per_page
        for name, pages in manager.get_req_blocks_per_leaf(context).items()
    )


def token_bytes(config, layers):
    """Keys and values of one token in float32."""
    return 2 * 4 * layers * config.num_key_value_heads * config.head_dim


def test_without_a_window_every_token_stays(tmp_path):
    config = configure(tmp_path, UNIFORM | {"sliding_window": None})
    assert isinstance(config.kv_params, KVCacheParams)
    assert held_bytes(config.kv_params, 6144) >= 6144 * token_bytes(config, 4)


def test_a_window_on_every_layer(tmp_path):
    config = configure(tmp_path, UNIFORM)
    assert isinstance(config.kv_params, KVCacheParams)
    # The window and the page that it begins in.
    most = (WINDOW + 128) * token_bytes(config, 4)
    for tokens in (2048, 6144):
        assert held_bytes(config.kv_params, tokens) <= most


def test_a_window_on_three_of_four_layers(tmp_path):
    config = configure(tmp_path, MIXED)
    assert isinstance(config.kv_params, MultiKVCacheParams)
    full = 6144 * token_bytes(config, 1)
    sliding = (WINDOW + 128) * token_bytes(config, 3)
    assert full <= held_bytes(config.kv_params, 6144) <= full + sliding


def test_where_each_layer_finds_its_keys(tmp_path):
    config = configure(tmp_path, MIXED)
    assert config.kv_places == [(FULL, 0), (SLIDING, 0), (SLIDING, 1), (SLIDING, 2)]
    assert [group.num_layers for group in config.kv_groups] == [1, 3]
    assert [group.window_size for group in config.kv_groups] == [None, WINDOW]


@pytest.mark.parametrize("values", [UNIFORM, MIXED])
def test_a_window_that_no_sequence_outgrows_is_none(tmp_path, values):
    config = configure(tmp_path, values, max_length=WINDOW)
    assert [group.window_size for group in config.kv_groups] == [None]
    assert config.kv_places == [(FULL, i) for i in range(4)]
    assert config.layer_windows == [None] * 4


def test_a_shorter_plan_leaves_the_caches_as_they_are(tmp_path):
    """MAX may plan for less than --max-length; the caches are laid out before."""
    write_checkpoint(tmp_path, MIXED)
    pipeline_config = make_pipeline_config(tmp_path, max_length=None)
    config = MistralConfig.initialize(pipeline_config, max_seq_len=WINDOW)
    assert config.layer_windows == [None] * 4
    assert config.kv_places == [(FULL, 0), (SLIDING, 0), (SLIDING, 1), (SLIDING, 2)]


def test_a_window_of_one_token(tmp_path):
    """MAX's caches know none; the graph does."""
    config = configure(tmp_path, UNIFORM | {"sliding_window": 1})
    assert [group.window_size for group in config.kv_groups] == [2]
    assert config.layer_windows == [1] * 4


def test_devices_share_heads_or_copies_of_them(tmp_path):
    flags = {
        "device_specs": [DeviceSpec.accelerator(i) for i in range(4)],
        "quantization_encoding": "bfloat16",
    }
    write_checkpoint(tmp_path, MIXED | {"num_key_value_heads": 2}, dtype="bfloat16")
    config = MistralConfig.initialize(make_pipeline_config(tmp_path, **flags))
    assert config.sharing.total_kv_heads == 4
    for group in config.kv_groups:
        assert group.n_kv_heads_per_device == 1


def test_a_cache_that_no_kernel_reads():
    """MAX refuses its other formats itself."""
    message = (
        "be float16, but here on a CPU it can be float32, bfloat16 or float8_e4m3fn"
    )
    with pytest.raises(UserError, match=message):
        check_cache(DType.float16, [None], [DeviceRef.CPU()], "on")


def test_no_layers_are_no_cache(tmp_path):
    write_checkpoint(tmp_path, BASE)
    pipeline_config = make_pipeline_config(tmp_path)
    config = pipeline_config.model.huggingface_config
    config.num_hidden_layers = 0
    with pytest.raises(UserError, match="num_hidden_layers = 0"):
        MistralConfig.initialize_from_config(pipeline_config, config)
    with pytest.raises(UserError, match="num_hidden_layers = 0"):
        MistralConfig.construct_kv_params(
            config, pipeline_config, [], pipeline_config.model.kv_cache, DType.float32
        )
