"""Whether the KV caches of layers with windows have room for one request.

MAX plans for what one request's windows need in an empty pool. A step needs more,
and a request that finds no page ends MAX's worker, for there is no other request
to preempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from max.nn.kv_cache import (
    CacheLeafParamInterface,
    KVCacheParamInterface,
    KVCacheParams,
    KVConnectorType,
    KVLeafRegion,
    MultiKVCacheParams,
)
from max.pipelines.kv_cache.paged_kv_cache.jenga_cache_manager import (
    JengaKVCacheManager,
)
from max.support.human_readable_formatter import to_human_readable_bytes
from max.support.math import ceildiv

from .errors import UserError
from .kv_cache import kv_groups

logger = logging.getLogger("max.pipelines")


def with_room(
    params: KVCacheParamInterface,
    available_bytes: int,
    longest: int,
    step_tokens: int | None,
) -> KVCacheParamInterface:
    """Returns the parameters, without reuse of prefixes where that leaves no room.

    MAX's pool is cut into blocks, each of which holds pages of one cache at a
    time. The pages of a prefix that is used again lie anywhere, so in the worst
    case each of a request's pages has a block of its own. Pages that are taken
    as a request grows fill whole blocks.

    Args:
        params: The KV caches'.
        available_bytes: What they may take, on all devices together.
        longest: The longest sequence, in tokens.
        step_tokens: How many tokens of a prompt a step reads at most; ``None``
            for all.

    Raises:
        UserError: (a ``ValueError``) if one request may find no page.
    """
    if not _has_windows(params):
        return params  # MAX's own check is enough
    try:
        geometry = JengaKVCacheManager._plan_geometry(params, available_bytes)
    except ValueError:  # too little for anything, as MAX will say
        return params
    pages = {
        name: _pages(leaf, params.page_size, longest, step_tokens)
        for name, leaf in params.leaves().items()
    }
    blocks = geometry.num_huge_blocks - 1  # the first is of no request
    filled = sum(ceildiv(n, geometry.ratios[name]) for name, n in pages.items())
    if filled > blocks:
        need = (filled + 1) * geometry.huge_page_bytes * len(params.devices)
        raise UserError(
            f"The KV cache has {to_human_readable_bytes(available_bytes)}, but one "
            f"request of {longest} tokens, {step_tokens or longest} of which are read "
            f"in a step, may need {to_human_readable_bytes(need)}. Set a smaller "
            "--max-length or --max-batch-input-tokens, or a larger "
            "--device-memory-utilization."
        )
    if params.enable_prefix_caching and sum(pages.values()) > blocks:
        connectors = {each.kv_connector_config.type for each in kv_groups(params)}
        if connectors != {KVConnectorType.null}:
            raise UserError(
                "--kv-connector-config needs prefix caching, and that more KV cache "
                "than there is, with layers with and without windows. Set "
                "--max-batch-size, or a larger one, or a smaller --max-length, or "
                "leave it out."
            )
        logger.warning(
            "Prefix caching is off: with layers with and without windows it needs "
            "more KV cache than there is. --max-batch-size, or a larger one, or a "
            "smaller --max-length makes room."
        )
        return _changed(params, _without_prefixes)
    return params


def for_planning(
    params: KVCacheParamInterface, step_tokens: int | None
) -> KVCacheParamInterface:
    """Returns parameters by which MAX plans enough memory for a step.

    MAX plans what a window needs; these have windows as wide as a step needs.

    Args:
        params: The KV caches'.
        step_tokens: How many tokens of a prompt a step reads at most; ``None``
            for all.
    """

    def wider(cache: KVCacheParams) -> KVCacheParams:
        if cache.window_size is None:
            return cache
        if step_tokens is None:
            return replace(cache, window_size=None)
        wide = cache.window_size + step_tokens + cache.page_size
        return replace(cache, window_size=wide)

    return _changed(params, wider) if _has_windows(params) else params


def _has_windows(params: KVCacheParamInterface) -> bool:
    leaves = params.leaves().values()
    return any(leaf.group_id.is_sliding_window() for leaf in leaves)


def _pages(
    leaf: KVLeafRegion, page_size: int, longest: int, step_tokens: int | None
) -> int:
    """How many pages of a cache one request may hold at a time."""
    if not leaf.group_id.is_sliding_window() or step_tokens is None:
        return ceildiv(longest, page_size)
    # Both ends may lie within a page.
    tokens = leaf.group_id.window_size + step_tokens
    return min(ceildiv(longest, page_size), ceildiv(tokens, page_size) + 1)


def _without_prefixes(cache: KVCacheParams) -> KVCacheParams:
    return replace(cache, enable_prefix_caching=False)


def _changed(
    params: KVCacheParamInterface, change: Callable[[KVCacheParams], KVCacheParams]
) -> KVCacheParamInterface:
    """Returns the parameters of one cache, or of a tree of two, each changed."""
    if isinstance(params, KVCacheParams):
        return change(params)
    assert isinstance(params, MultiKVCacheParams)
    children: dict[str, CacheLeafParamInterface] = {}
    for name, child in params.children.items():
        assert isinstance(child, KVCacheParams)
        children[name] = change(child)
    return MultiKVCacheParams.from_params(children)
