"""How long a context fits the memory beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from max.driver import DeviceSpec, load_devices
from max.dtype import DType
from max.pipelines.kv_cache import cache_dtype_for_encoding
from transformers import PretrainedConfig

from .. import hf_config as hf
from .. import kernels, switches
from ..encoding import DEFAULT_ENCODING, dtype_beside
from ..errors import UserError, shown
from ..hf_quantization import read_quantization
from ..host_memory import free_memory
from ..kv_cache import default_cpu_dtype, stored_as
from ..weights.memory import bytes_in_memory, bytes_stored
from .checkpoint import Checkpoint
from .errors import UsageError

# What MAX keeps of the free memory by default (--device-memory-utilization).
UTILIZATION = 0.9
# The other half of what the weights leave is for activations and all else.
_SHARE = 0.5
# A shorter context is of no use to anyone.
_LEAST_CONTEXT = 256


@dataclass(frozen=True)
class Fit:
    """What a context was picked by."""

    context: int
    """In tokens, prompt and answer together."""
    limit: int
    """The longest that the model was made for."""
    weights: int
    """Their bytes in memory."""
    free: int
    """Bytes on the devices."""


def fit_context(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    devices: Sequence[DeviceSpec],
    encoding: str | None,
    kv_format: str | None = None,
    *,
    replicas: int = 1,
    utilization: float = UTILIZATION,
) -> Fit:
    """Returns the model's own limit, or the largest power of two that fits.

    MAX compiles anew for another length, so the length must not follow every
    change of the free memory.

    Args:
        checkpoint: Where the weights are.
        config: The whole HF config.
        devices: Where the model is to run.
        encoding: --quantization-encoding; None for the files' own.
        kv_format: What --kv-cache-format is, if it is given.
        replicas: --data-parallel-degree: each has the weights, and its own requests.
        utilization: --device-memory-utilization.

    Raises:
        UserError: (a ``ValueError``) if there is no room for a context at all; of
            the subclass :class:`UsageError` if ``kv_format`` is none.
    """
    text = hf.text_config(config)
    limit = hf.max_seq_len(text, None)
    free = (free_memory() if on_cpu(devices) else _free_on(devices)) // replicas
    quantization = None if checkpoint.is_gguf else read_quantization(config, None)
    restored = quantization is not None and quantization.is_restored(
        on_cpu=on_cpu(devices)
    )
    weights = _weight_bytes(
        checkpoint,
        config,
        devices,
        encoding,
        quantized=quantization is not None and not restored,
        restored=restored,
    )
    room = (free * utilization - weights) * _SHARE
    fitting = int(max(room, 0)) // _token_bytes(text, devices, kv_format, encoding)
    context = limit if fitting >= limit else 1 << fitting.bit_length() >> 1
    if context < min(_LEAST_CONTEXT, limit):
        in_fp8 = f", or set {switches.FP8}=keep, which halves the weights"
        raise UserError(
            f"The weights take {gigabytes(weights)} of the {gigabytes(free)} that are "
            "free, which leaves no room for a context. Take a smaller model or "
            "encoding, or more --devices"
            f"{in_fp8 if restored and not on_cpu(devices) else ''}; "
            "--max-length tries it anyway."
        )
    return Fit(context, limit, weights, free)


def _free_on(gpus: Sequence[DeviceSpec]) -> int:
    return sum(int(device.stats["free_memory"]) for device in load_devices(gpus))


def _weight_bytes(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    devices: Sequence[DeviceSpec],
    encoding: str | None,
    *,
    quantized: bool,
    restored: bool,
) -> int:
    text = hf.text_config(config)
    if encoding is None and checkpoint.is_gguf:
        encoding = DEFAULT_ENCODING
    packed = on_cpu(devices) and kernels.mode() != "off"
    return bytes_in_memory(
        sum(bytes_stored(path, packed=packed) for path in checkpoint.weights),
        text,
        None if encoding is None else dtype_beside(encoding),
        tied=config.tie_word_embeddings and text.tie_word_embeddings,
        packed=packed,
        quantized=quantized,
        restored=restored,
    )


def _token_bytes(
    config: PretrainedConfig,
    devices: Sequence[DeviceSpec],
    kv_format: str | None,
    encoding: str | None = None,
) -> int:
    """Of one token's keys and values. A window is not counted on."""
    if on_cpu(devices):
        dtype = default_cpu_dtype(kernels.mode())
    else:
        # The same as MAX's own, which here would raise for a mistyped encoding.
        dtype = DType.bfloat16 if encoding is None else dtype_beside(encoding)
    if kv_format is not None:
        try:
            dtype = cache_dtype_for_encoding(None, kv_format)
        except ValueError as error:
            raise UsageError(
                f"--kv-cache-format is {shown(kv_format)}: {error}"
            ) from error
    dtype, width = stored_as(dtype, hf.head_dim(config), on_cpu=on_cpu(devices))
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return numbers * dtype.size_in_bytes


def on_cpu(devices: Sequence[DeviceSpec]) -> bool:
    """Whether the model is to run on a CPU."""
    return any(device.device_type == "cpu" for device in devices)


def gigabytes(size: int) -> str:
    """Returns a number of bytes as people say it."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:.3g} {name}"
