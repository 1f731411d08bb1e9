"""A KV cache that MAX accepts for a model with windows has room for any request."""

import re

import numpy as np
import pytest
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import (
    InsufficientBlocksError,
    load_kv_manager,
)
from max.pipelines.kv_cache.paged_kv_cache.jenga_cache_manager import (
    JengaKVCacheManager,
)

from max_mistral import kv_room
from max_mistral.errors import UserError
from max_mistral.kv_room import for_planning, with_room
from tests.unit.test_kv_cache import BASE, LONGEST, MIXED, UNIFORM, configure

PLENTY = 1 << 30
CHUNK = 512


def params_of(folder, values, *, prefixes=True):
    flags = {"max_length": LONGEST, "enable_prefix_caching": prefixes}
    return configure(folder, values, **flags).kv_params


def read_longest(params, memory, chunk):
    """Gives one request of the greatest length its pages, as MAX's scheduler does."""
    manager = load_kv_manager(
        params,
        max_batch_size=1,
        max_seq_len=LONGEST,
        session=None,
        available_cache_memory=memory,
        is_di_enabled=False,
        model_name="",
        max_num_input_tokens=chunk,
    )
    prompt = np.arange(LONGEST - 1, dtype=np.int64) % 90
    context = TextContext(max_length=LONGEST, tokens=TokenBuffer(prompt))
    manager.claim(context)
    while len(context.tokens) < LONGEST:
        manager.alloc(context)
        if chunk and context.tokens.active_length > chunk:
            context.tokens.chunk(chunk)
        context.update(5)
        manager.step(context)


def least(params):
    """The least memory that MAX accepts."""
    return JengaKVCacheManager.memory_size(params, PLENTY, 1, LONGEST)


@pytest.mark.parametrize("values", [UNIFORM, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_what_max_accepts_may_be_too_little(tmp_path, values, chunk):
    params = params_of(tmp_path, values, prefixes=False)
    with pytest.raises(InsufficientBlocksError):
        read_longest(params, least(params), chunk)
    with pytest.raises(UserError, match=r"may need .* --max-batch-input-tokens"):
        with_room(params, least(params), LONGEST, chunk)


@pytest.mark.parametrize("values", [UNIFORM, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_what_the_message_asks_for_is_the_least(tmp_path, monkeypatch, values, chunk):
    # To the last byte, where people are told two digits.
    monkeypatch.setattr(kv_room, "to_human_readable_bytes", str)
    params = params_of(tmp_path, values, prefixes=False)
    with pytest.raises(UserError) as error:
        with_room(params, least(params), LONGEST, chunk)
    need = int(re.search(r"may need (\d+)", str(error.value))[1])
    assert with_room(params, need, LONGEST, chunk) is params
    with pytest.raises(UserError, match="may need"):
        with_room(params, need - 1, LONGEST, chunk)


@pytest.mark.parametrize("values", [UNIFORM, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_the_least_that_is_accepted_is_enough(tmp_path, values, chunk):
    params = params_of(tmp_path, values, prefixes=False)
    accepted = []
    for memory in range(least(params), PLENTY, 1 << 14):
        try:
            with_room(params, memory, LONGEST, chunk)
        except UserError:
            continue
        accepted.append(memory)
        break
    read_longest(params, accepted[0], chunk)


@pytest.mark.parametrize("values", [UNIFORM, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_what_max_plans_for_one_request_is_enough(tmp_path, values, chunk):
    params = params_of(tmp_path, values, prefixes=False)
    planned = least(for_planning(params, chunk))
    assert with_room(params, planned, LONGEST, chunk) is params
    read_longest(params, planned, chunk)


def test_prefixes_are_not_reused_where_their_pages_could_lie_anywhere(tmp_path, caplog):
    params = params_of(tmp_path, MIXED)
    one, two = (
        JengaKVCacheManager.memory_size(
            for_planning(params, None), PLENTY, requests, LONGEST
        )
        for requests in (1, 2)
    )
    assert with_room(params, two, LONGEST, None) is params
    changed = with_room(params, one, LONGEST, None)
    assert not changed.enable_prefix_caching
    assert not any(p.enable_prefix_caching for p in changed.children.values())
    assert "Prefix caching is off" in caplog.text


def test_a_connector_is_not_left_without_prefixes(tmp_path):
    (tmp_path / "disk").mkdir()
    kind = {"type": "rust_tiered", "disk_offload_dir": str(tmp_path / "disk")}
    flags = {"max_length": LONGEST, "kv_connector_config": kind}
    params = configure(tmp_path, MIXED, **flags).kv_params
    one = JengaKVCacheManager.memory_size(
        for_planning(params, None), PLENTY, 1, LONGEST
    )
    with pytest.raises(UserError, match="--kv-connector-config needs prefix caching"):
        with_room(params, one, LONGEST, None)


def test_with_one_cache_prefixes_always_have_room(tmp_path):
    params = params_of(tmp_path, UNIFORM)
    one = least(for_planning(params, None))
    assert with_room(params, one, LONGEST, None) is params


def test_without_windows_max_is_right(tmp_path):
    params = params_of(tmp_path, BASE | {"max_position_embeddings": LONGEST})
    assert with_room(params, 1, LONGEST, None) is params
    assert for_planning(params, None) is params


def test_max_plans_by_the_wider_windows(tmp_path):
    flags = {"max_length": LONGEST, "max_batch_input_tokens": CHUNK}
    config = configure(tmp_path, MIXED, **flags)
    leaves = config.get_kv_params().leaves().values()
    assert [leaf.group_id.window_size for leaf in leaves] == [-1, 1024 + CHUNK + 128]
    assert config.get_kv_params().enable_prefix_caching
