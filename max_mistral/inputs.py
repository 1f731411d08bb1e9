"""What one execution of the graph takes: its buffers and their symbolic types."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from max import tree
from max.driver import Buffer
from max.graph import DeviceRef
from max.nn.kv_cache.cache_params import KVCacheParamInterface
from max.pipelines.lib import ModelInputs
from max.pipelines.lib.interfaces.batch_processor import (
    ragged_batch_inputs,
    signal_inputs,
)

from .errors import UserError


@dataclass
class MistralInputs(ModelInputs):
    """The inputs of one step over a ragged batch.

    The rows of all requests lie end to end: request ``i`` owns
    ``tokens[input_row_offsets[i]:input_row_offsets[i + 1]]``.

    Raises:
        UserError: (a ``ValueError``) if ``lora_ids``, ``lora_ranks`` or
            ``hidden_states`` is given: this graph has no place for them.
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

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The graph's positional inputs, in the order of :func:`input_tree`."""
        splits = self.data_parallel_splits
        return (
            self.tokens,
            self.input_row_offsets,
            self.return_n_logits,
            *([] if splits is None else [splits]),
            *self.signal_buffers,
            *tree.leaves(self.kv_cache_inputs),
        )


def input_tree(
    kv_params: KVCacheParamInterface, devices: list[DeviceRef], replicas: int = 1
) -> OrderedDict[str, object]:
    """Names the graph's inputs: batch, signals, kv.

    The batch has ``data_parallel_splits`` where there are replicas; signals
    are there where several devices share one.

    Args:
        kv_params: The KV cache parameters, which supply the ``kv`` subtree.
        devices: The devices; the first one holds the batch tensors.
        replicas: How many replicas of the model share them.
    """
    fields = ["tokens", "row_offsets", "return_n_logits"]
    if replicas > 1:
        fields.append("data_parallel_splits")
    inputs: OrderedDict[str, object] = OrderedDict(
        batch=ragged_batch_inputs(devices[0], fields, data_parallel_degree=replicas)
    )
    if len(devices) > replicas:
        inputs["signals"] = signal_inputs(devices)
    inputs["kv"] = kv_params.get_symbolic_inputs()
    return inputs
