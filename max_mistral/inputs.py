"""What one execution of the graph takes: its buffers and their symbolic types."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from max.driver import Buffer
from max.graph import DeviceRef
from max.nn.kv_cache.cache_params import KVCacheParamInterface
from max.pipelines.lib import ModelInputs
from max.pipelines.lib.interfaces.batch_processor import (
    ragged_batch_inputs,
    signal_inputs,
)
from max.tree import flatten_one_level, is_node

from .errors import UserError

BATCH = (
    *("tokens", "row_offsets", "return_n_logits"),
    *("data_parallel_splits", "host_row_offsets"),
)
"""MAX's names of a batch's inputs; the last two are there with replicas only."""


@dataclass
class MistralInputs(ModelInputs):
    """The inputs of one step over a ragged batch.

    The rows of all requests lie end to end: request ``i`` owns
    ``tokens[input_row_offsets[i]:input_row_offsets[i + 1]]``.

    Raises:
        UserError: (a ``ValueError``) if ``lora_ids``, ``lora_ranks`` or
            ``hidden_states`` is given: this graph has no place for them; or only
            one of the two inputs of replicas.
    """

    tokens: Buffer
    """Token ids, int64 ``[total_seq_len]``, on the first device."""

    input_row_offsets: Buffer
    """Where each request's tokens start, uint32 ``[batch + 1]``, on the first
    device."""

    signal_buffers: list[Buffer]
    """One buffer per device for collectives; empty on one device."""

    return_n_logits: Buffer
    """How many trailing logits ``ReturnLogits.VARIABLE`` returns, int64 ``[1]``, on
    the host."""

    data_parallel_splits: Buffer | None = field(default=None, kw_only=True)
    """Where each replica's requests start, int64 ``[replicas + 1]``, on the host;
    ``None`` without replicas."""

    host_row_offsets: Buffer | None = field(default=None, kw_only=True)
    """``input_row_offsets`` on the host; ``None`` without replicas."""

    lora_ids: Buffer | None = field(default=None, kw_only=True)
    """Not supported; only ``None``."""

    lora_ranks: Buffer | None = field(default=None, kw_only=True)
    """Not supported; only ``None``."""

    def __post_init__(self) -> None:
        for name in ("lora_ids", "lora_ranks", "hidden_states"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"MistralInputs got {name}, which max_mistral does not "
                    f"support. Leave {name} out."
                )
        if (self.data_parallel_splits is None) != (self.host_row_offsets is None):
            raise UserError(
                "MistralInputs got only one of data_parallel_splits and "
                "host_row_offsets. Give both, for replicas, or neither."
            )

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The graph's positional inputs."""
        batch = {
            "tokens": self.tokens,
            "row_offsets": self.input_row_offsets,
            "return_n_logits": self.return_n_logits,
        }
        if self.data_parallel_splits is not None and self.host_row_offsets is not None:
            batch["data_parallel_splits"] = self.data_parallel_splits
            batch["host_row_offsets"] = self.host_row_offsets
        ordered = in_order(batch, self.signal_buffers, self.kv_cache_inputs)
        return tuple(_buffers(ordered))


def in_order(
    batch: Mapping[str, Any], signals: object, kv: object
) -> OrderedDict[str, Any]:
    """Returns a graph's inputs in the order in which it takes them.

    The only place that states the order: types, symbolic values and buffers all
    go through it.

    Args:
        batch: By the names of :data:`BATCH`; those of replicas may be left out.
        signals: A tree with one for each device; empty where none share a replica.
        kv: The tree of the KV caches.
    """
    named = OrderedDict((name, batch[name]) for name in BATCH if name in batch)
    return OrderedDict(batch=named, signals=signals, kv=kv)


def input_tree(
    kv_params: KVCacheParamInterface, devices: list[DeviceRef], replicas: int = 1
) -> OrderedDict[str, Any]:
    """Names the graph's inputs; its leaves are their types.

    Args:
        kv_params: The KV cache parameters.
        devices: The devices; the first one holds the batch tensors.
        replicas: How many replicas of the model share them.
    """
    fields = BATCH if replicas > 1 else BATCH[:3]
    return in_order(
        ragged_batch_inputs(devices[0], fields, data_parallel_degree=replicas),
        signal_inputs(devices) if len(devices) > replicas else OrderedDict(),
        kv_params.get_symbolic_inputs(),
    )


def _buffers(tree: Any) -> list[Buffer]:
    """Returns a tree's leaves as ``max.tree.leaves`` does.

    In a third of its time, for that one makes each leaf's path too.
    """
    if not is_node(tree):
        return [tree]
    children, _, _ = flatten_one_level(tree)
    return [buffer for child in children for buffer in _buffers(child)]
